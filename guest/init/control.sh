#!/usr/bin/busybox sh
# The control port (TCP 9, with lockstep.control on the kernel's command line), for tests: whoever reaches
# it may stop the service. One word a line; each answer ends with `ok` or `failed`.
#
#   check     stops the service, has it check its data, unmounts the disk and checks the file system
#   poweroff  what it says

export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C
service= data= disk=/dev/vda
stop() { kill "$server"; }
check() { :; }
. /usr/lib/lockstep/service

rest() {
    server=$(cat /run/lockstep.server) || return
    touch /run/lockstep.rest
    stop
    tries=0
    while [ -d "/proc/$server" ]; do
        tries=$((tries + 1))
        [ "$tries" = 600 ] && { echo "$service does not end"; return 1; }
        sleep 0.1
    done
}

verdict() { if [ "$1" = 0 ]; then echo ok; else echo "failed (status $1)"; fi; }

while read -r word; do
    case $word in
    check)
        {
            rest && check && if grep -q " $data " /proc/mounts; then
                umount "$data" && e2fsck -fn "$disk"
            fi
        } 2>&1
        verdict $?
        ;;
    poweroff)
        sync
        echo ok
        poweroff -f
        ;;
    *) echo "there is check and poweroff"; verdict 1 ;;
    esac
done
