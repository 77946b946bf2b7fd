#!/usr/bin/env bash
# Makes what compose.yaml takes from ./secrets: a password for PostgreSQL, the URL of the store that holds it, and a certificate
# of an authority of your own, for the names that trainers and browsers use:
#
#   sudo ./make-secrets.sh mechanicd.example.org [MORE NAMES]
#
# Run it again for a new certificate of the same authority: the server reads it without a restart. The password stays. Only root
# can give the files to the users of the containers; without root they belong to you, and it says so.
set -euo pipefail
umask 077
[ $# -gt 0 ] || { echo "usage: $0 NAME..., the names by which trainers and browsers reach this machine" >&2; exit 2; }
cd "$(dirname "$0")"
mkdir -p secrets
cd secrets

[ -s postgres-password ] || openssl rand -hex 24 >postgres-password
[ -s store ] || printf 'postgresql://mechanicd:%s@postgres/mechanicd\n' "$(cat postgres-password)" >store

if [ ! -s ca.crt ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj "/CN=mechanicd" \
        -addext "keyUsage=critical,keyCertSign,cRLSign" -keyout ca.key -out ca.crt 2>/dev/null
fi
names=$(printf ',DNS:%s' "$@" mechanicd localhost) # also as the trainer of compose.yaml and this machine call it
openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$1" -keyout new.key -out new.csr 2>/dev/null
openssl x509 -req -in new.csr -CA ca.crt -CAkey ca.key -days 365 -out new.crt \
    -extfile <(printf '%s\n' "subjectAltName=${names#,}" extendedKeyUsage=serverAuth subjectKeyIdentifier=hash \
        authorityKeyIdentifier=keyid) 2>/dev/null
# In place: a container has the file itself, not its folder. The server keeps its pair until certificate and key fit together.
cat new.key >tls.key
cat new.crt >tls.crt
rm new.key new.crt new.csr

chmod 0444 ca.crt
if [ "$(id -u)" = 0 ]; then
    chown 999 postgres-password           # postgres, in its image
    chown 65532 store tls.key tls.crt     # mechanicd, in its image
else
    echo "not root: chown postgres-password to user 999, and store, tls.key and tls.crt to user 65532" >&2
fi
