#!/usr/bin/env bash
# Does what packaging/manifest lists.
#
#   files.sh install|uninstall|check PARTS     below $DESTDIR; check: says what is missing there
#   files.sh rpm|conffiles PARTS               the list for RPM's %files, or Debian's conffiles
#
# The folders (SBINDIR and so on) and BIN come from the environment: the Makefile has them.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
[ $# = 2 ] || { sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2; }
todo=$1 parts=$2
root=${DESTDIR:-}
words=(SBINDIR BINDIR LIBEXECDIR DATADIR MANDIR DOCDIR TMPFILESDIR SYSCTLDIR UNITDIR LOGROTATEDIR CRONDIR
    CONFDIR UDEVDIR XENSCRIPTDIR ZSHDIR BIN)
cd "$here"

edits=()
for word in "${words[@]}"; do
    value=${!word-}
    [ -n "$value" ] || { echo "files.sh: $word is not set: call it by make" >&2; exit 2; }
    edits+=(-e "s|@$word@|$value|g")
done

# The text or program of a source, on standard output.
contents() {
    case $1 in
        "$BIN"/*) cat "$1" ;;
        *) sed "${edits[@]}" "$1" ;;
    esac
}

put() { # mode, source, destination
    local tool=${2#*:} way=${2%%:*}
    install -d "$(dirname "$3")"
    # Not written over: a program that is running keeps its file.
    rm -f "$3"
    case $2 in
        man:* | bash:* | zsh:* | fish:*)
            packaging/generate.sh "$BIN/$tool" "$way" "$3"
            ;;
        *) contents "$2" >"$3" ;;
    esac
    chmod "$1" "$3"
}

unchanged() { # source, file
    contents "$1" | cmp -s - "$2"
}

missing=0
folders=()
while read -r part kind destination source; do
    [[ " $parts " == *" $part "* ]] || continue
    file=$root$destination
    case $todo:$kind in
        install:dir) install -d "$file" ;;
        install:conf | install:conf-run)
            mode=0644
            [ "$kind" = conf ] || mode=0755
            # A package's own build begins with an empty folder.
            [ -e "$file" ] || put $mode "$source" "$file"
            ;;
        install:*) put "$kind" "$source" "$file" ;;
        uninstall:dir) folders+=("$file") ;;
        uninstall:conf*)
            if [ -e "$file" ] && unchanged "$source" "$file"; then
                rm "$file"
            fi
            ;;
        uninstall:*) rm -f "$file" ;;
        check:dir) [ -d "$file" ] || { echo "$destination is missing"; missing=1; } ;;
        check:*)
            [ -s "$file" ] || { echo "$destination is missing or empty"; missing=1; continue; }
            case $kind in
                0755 | conf-run) [ -x "$file" ] ||
                    { echo "$destination is not executable"; missing=1; } ;;
            esac
            ;;
        rpm:dir) echo "%dir $destination" ;;
        rpm:conf*) echo "%config(noreplace) $destination" ;;
        # Compressed after the installation, or not.
        rpm:*) case $destination in "$MANDIR"/*) echo "$destination*" ;; *) echo "$destination" ;; esac ;;
        conffiles:conf*) echo "$destination" ;;
        conffiles:*) case $destination in /etc/*) [ "$kind" = dir ] ||
            echo "$destination" ;; esac ;;
        *) echo "files.sh: does not know how to $todo $kind ($destination)" >&2; exit 2 ;;
    esac
done < <(sed "${edits[@]}" -e '/^#/d' -e '/^$/d' packaging/manifest)
for folder in "${folders[@]}"; do
    [ ! -d "$folder" ] || rmdir --ignore-fail-on-non-empty "$folder"
done
exit $missing
