# bash completion of cbt-util
_cbt_util() {
  local cur=${COMP_WORDS[COMP_CWORD]} words
  if [ "$COMP_CWORD" -eq 1 ]; then
    words='create set get coalesce dump --help --version'
  else case ${COMP_WORDS[1]} in
    create) words='-n -s --help' ;;
    set) words='-n -p -c -f -s --help' ;;
    get) words='-n -p -c -f -s -b --json --help' ;;
    coalesce) words='-p -c --help' ;;
    dump) words='-n --json --help' ;;
    *) words= ;;
  esac; fi
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
}
complete -o default -F _cbt_util cbt-util
