#compdef td-util
_td-util() {
  if (( CURRENT == 2 )); then
    local -a commands=(
      'create:make an image'
      'snapshot:make a differencing image'
      'query:print facts about an image'
      'set:set the hidden flag'
    )
    _describe command commands
    return
  fi
  if (( CURRENT == 3 )); then
    compadd vhd aio
    return
  fi
  local command=$words[2]
  shift 2 words; (( CURRENT -= 2 ))
  case $command in
    create) _arguments '-r[reserve]' ':size in MiB:' ':file:_files' ;;
    snapshot) _arguments '-m[the parent is raw]' '-l[depth limit]:images:' ':file:_files' ':parent:_files' ;;
    query) _arguments '-v[size]' '-p[parent]' '-f[hidden flag]' '-d[depth of the chain]' '-b[use the copy of the footer]' '--json[one JSON object]' ':file:_files' ;;
    set) _arguments ':file:_files' ':field:(hidden)' ':value:' ;;
  esac
}
_td-util "$@"
