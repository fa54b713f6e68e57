#!/usr/bin/env bash
# Writes one file that tap-ctl generates about itself (man page, completions) and makes sure that it is what
# was asked for: an unknown tap-ctl command prints the usage text and exits 0, as the original's does.
#
#   generate.sh PATH/TO/tap-ctl man|bash|zsh|fish OUTPUT
set -euo pipefail

tap_ctl=$1 what=$2 output=$3

case $what in
    man) command=(man) mark='^\.TH ' ;;
    bash) command=(completions bash) mark='^complete .*tap-ctl' ;;
    zsh) command=(completions zsh) mark='^#compdef tap-ctl' ;;
    fish) command=(completions fish) mark='^complete .*tap-ctl' ;;
    *) echo "generate.sh: do not know how to generate '$what'" >&2; exit 2 ;;
esac

text=$("$tap_ctl" "${command[@]}")
if ! grep -q -- "$mark" <<<"$text"; then
    echo "generate.sh: '$tap_ctl ${command[*]}' did not print a $what file (no line matches '$mark')" >&2
    exit 1
fi
printf '%s\n' "$text" >"$output"
chmod 0644 "$output"
