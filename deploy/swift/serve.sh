#!/bin/bash
# An S3-compatible server of one node: OpenStack Swift with its S3 API. Ends when any of its four processes ends.
#   usage: serve.sh FOLDER ADDRESS PORT        (PORT+1 .. PORT+3 are used on loopback as well)
#   environment: S3_ACCOUNT and S3_USER (the access key is S3_ACCOUNT:S3_USER), S3_SECRET_ACCESS_KEY
# FOLDER must lie on a file system with extended attributes (ext4, xfs, btrfs).
set -euo pipefail
folder=$1 address=$2 port=$3
account=${S3_ACCOUNT:-labelloop} user=${S3_USER:-labelloop}
secret=${S3_SECRET_ACCESS_KEY:?set S3_SECRET_ACCESS_KEY to the secret that clients must sign with}
case $secret in *[!A-Za-z0-9_-]*) echo "S3_SECRET_ACCESS_KEY may hold letters, digits, - and _ only" >&2; exit 2 ;; esac

umask 077
mkdir -p "$folder/disk/d1"
if [ ! -e "$folder/swift.conf" ]; then # the prefix and suffix say where objects lie: made once, kept with the data
    salt() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }
    printf '[swift-hash]\nswift_hash_path_prefix = %s\nswift_hash_path_suffix = %s\n[storage-policy:0]\nname = one\ndefault = yes\n' \
        "$(salt)" "$(salt)" >"$folder/swift.conf.part"
    mv "$folder/swift.conf.part" "$folder/swift.conf"
fi

defaults() { # ADDRESS PORT
    printf '[DEFAULT]\nbind_ip = %s\nbind_port = %s\nworkers = 0\nuser = %s\nswift_dir = %s\ndevices = %s/disk\n' \
        "$1" "$2" "$(id -un)" "$folder" "$folder"
    printf 'mount_check = false\nfallocate_reserve = 1%%\nlog_level = WARNING\nlog_address = /nowhere\n'
}

stop() { kill $(jobs -p) 2>/dev/null || true; wait || true; }
trap 'stop; exit 0' TERM INT

offset=0
parts=()
for kind in account container object; do
    offset=$((offset + 1))
    {
        defaults 127.0.0.1 $((port + offset))
        printf '[pipeline:main]\npipeline = %s-server\n[app:%s-server]\nuse = egg:swift#%s\n' $kind $kind $kind
    } >"$folder/$kind.conf"
    rm -f "$folder/$kind.builder" "$folder/$kind.ring.gz" # the ring names the port: made anew, it holds no data
    swift-ring-builder "$folder/$kind.builder" create 6 1 0 >/dev/null
    swift-ring-builder "$folder/$kind.builder" add "r1z1-127.0.0.1:$((port + offset))/d1" 1 >/dev/null
    swift-ring-builder "$folder/$kind.builder" rebalance >/dev/null
    swift-$kind-server "$folder/$kind.conf" &
    parts+=($!)
done

{
    defaults "$address" "$port"
    cat <<CONF
[pipeline:main]
pipeline = catch_errors healthcheck listing_formats bulk s3api tempauth copy slo dlo versioned_writes symlink proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_${account}_${user} = $secret .admin
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_object_versioning = true
CONF
    for filter in catch_errors healthcheck listing_formats bulk copy slo dlo symlink; do
        printf '[filter:%s]\nuse = egg:swift#%s\n' $filter $filter
    done
} >"$folder/proxy.conf"
# The proxy is healthy as soon as it listens, and shuns a part that it could not reach for a minute: it starts last.
for offset in 1 2 3; do
    until (exec 3<>"/dev/tcp/127.0.0.1/$((port + offset))") 2>/dev/null; do
        kill -0 "${parts[offset - 1]}" 2>/dev/null || { echo "a part of the store did not start" >&2; stop; exit 1; }
        sleep 0.1
    done
done
swift-proxy-server "$folder/proxy.conf" &

status=0
wait -n || status=$?
echo "a part of the store ended (status $status); stopping the others" >&2
stop
exit 1
