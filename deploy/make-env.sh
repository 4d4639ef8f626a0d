#!/bin/sh
# Writes the .env that docker-compose.yml asks for, with secrets of its own; an .env that is there is left alone.
#   usage: sh deploy/make-env.sh [FILE]
set -eu
example=$(dirname "$0")/../.env.example
file=${1:-$(dirname "$0")/../.env}
secret() { od -An -N20 -tx1 /dev/urandom | tr -d ' \n'; }
[ ! -e "$file" ] || { echo "$file is there already and was kept: its secrets are in use" >&2; exit 1; }
umask 077
while IFS= read -r line || [ -n "$line" ]; do
    case $line in
        [!#]*=GENERATE) printf '%s=%s\n' "${line%%=*}" "$(secret)" ;;
        *) printf '%s\n' "$line" ;;
    esac
done <"$example" >"$file"
echo "wrote $file"
