# bash completion of td-util
_td_util() {
  local cur=${COMP_WORDS[COMP_CWORD]} words
  case $COMP_CWORD in
    1) words='create snapshot query set --help --version' ;;
    2) words='vhd aio' ;;
    *) case ${COMP_WORDS[1]} in
         create) words='-r -h' ;;
         snapshot) words='-m -l -h' ;;
         query) words='-v -p -f -d -b --json -h' ;;
         set) words='hidden -h' ;;
         *) words= ;;
       esac ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
}
complete -o default -F _td_util td-util
