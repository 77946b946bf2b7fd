#!/bin/sh
# Puts promtool, which checks our Prometheus files, at the given path: the one of this machine, or that of Debian's package.
# It installs nothing, so it needs root only if apt has no package lists yet.
set -eu
target=$1
if found=$(command -v promtool); then
    ln -sf "$found" "$target"
    exit 0
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
download() { (cd "$folder" && apt-get download -qq prometheus >/dev/null 2>&1); }
if command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; then
    download || { [ "$(id -u)" = 0 ] && apt-get update -qq >/dev/null 2>&1 && download; } || true
    if [ -n "$(find "$folder" -name '*.deb')" ]; then
        dpkg-deb --fsys-tarfile "$folder"/*.deb | tar -x -C "$folder" ./usr/bin/promtool
        mv "$folder/usr/bin/promtool" "$target"
        exit 0
    fi
fi
echo "promtool is not here and apt can't fetch it; its tests will fail until it is in the PATH: install Prometheus" \
     "(Debian: apt-get install prometheus), then: rm -f .venv/dev.stamp && make test" >&2
