#!/usr/bin/env bash
# Writes one file that a tool generates about itself (man page, completions) and makes sure that it
# is what was asked for: an unknown command of these tools prints the usage text and exits 0, as the
# originals' do.
#
#   generate.sh PATH/TO/TOOL man|bash|zsh|fish OUTPUT
set -euo pipefail

tool=$1 what=$2 output=$3
name=$(basename "$tool")

case $what in
    man) command=(man) mark='^\.TH ' ;;
    bash) command=(completions bash) mark="^complete .*$name" ;;
    zsh) command=(completions zsh) mark="^#compdef $name" ;;
    fish) command=(completions fish) mark="^complete .*$name" ;;
    *) echo "generate.sh: do not know how to generate '$what'" >&2; exit 2 ;;
esac

text=$("$tool" "${command[@]}")
if ! grep -q -- "$mark" <<<"$text"; then
    echo "generate.sh: '$tool ${command[*]}' did not print a $what file (no line matches '$mark')" >&2
    exit 1
fi
printf '%s\n' "$text" >"$output"
chmod 0644 "$output"
