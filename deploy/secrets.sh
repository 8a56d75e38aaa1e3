#!/bin/sh
# Draw the database's password and write the two files that compose.yaml mounts, each for its container's user alone:
#   sudo deploy/secrets.sh [FOLDER]
# libpq ignores a password file that others may read, and Compose mounts files with the owner that they have; hence root.
set -eu
folder=${1:-$(dirname "$0")/secrets}
if [ -e "$folder/pgpass" ] || [ -e "$folder/postgres-password" ]; then
	echo "$folder has its files already; the database would not know another password" >&2
	exit 1
fi
umask 077
mkdir -p "$folder"
password=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
printf '%s' "$password" >"$folder/postgres-password"
printf 'db:5432:koinon:koinon:%s\n' "$password" >"$folder/pgpass"
chown 999:999 "$folder/postgres-password"
chown 10001:10001 "$folder/pgpass"
chmod 0400 "$folder/postgres-password" "$folder/pgpass"
echo "$folder/pgpass and $folder/postgres-password are written"
