#compdef cbt-util
_cbt-util() {
  if (( CURRENT == 2 )); then
    local -a commands=(
      'create:make an empty log'
      'set:set fields of a log'
      'get:print one field of a log'
      'coalesce:merge a log into its child'
      'dump:show everything in a log'
    )
    _describe command commands
    return
  fi
  local command=$words[2]
  shift words; (( CURRENT-- ))
  case $command in
    create) _arguments '-n[log]:file:_files' '-s[size of the disk in bytes]:bytes:' ;;
    set) _arguments '-n[log]:file:_files' '-p[parent]:uuid:' '-c[child]:uuid:' '-f[consistent]:flag:(0 1)' '-s[size of the disk in bytes]:bytes:' ;;
    get) _arguments '-n[log]:file:_files' '-p[parent]' '-c[child]' '-f[consistent]' '-s[size of the disk in bytes]' '-b[bitmap]' '--json[one JSON object]' ;;
    coalesce) _arguments '-p[parent log]:file:_files' '-c[child log]:file:_files' ;;
    dump) _arguments '-n[log]:file:_files' '--json[one JSON object]' ;;
  esac
}
_cbt-util "$@"
