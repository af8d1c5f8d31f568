#!/usr/bin/busybox sh
# The first process of a Lockstep guest: devices, network, one service. It is the guest's init for its
# whole life, and waits in wait(2), so that an idle guest stays idle.
#
# From the kernel's command line:
#   lockstep.ip=ADDRESS/PREFIX   the first network interface's address
#   lockstep.gateway=ADDRESS     default route
#   lockstep.hostname=NAME
#   lockstep.shell               a shell on the console beside the service
#   lockstep.control             the control port: see control.sh
#
# A service's data are on the first disk, if the machine has one and the recipe names their directory.

export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C

/usr/bin/busybox mkdir -p /proc /sys /dev /run /tmp
/usr/bin/busybox mount -t proc -o nosuid,nodev,noexec proc /proc
/usr/bin/busybox mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
/usr/bin/busybox mount -t devtmpfs -o nosuid,noexec devtmpfs /dev
# The names that no package brought a program for.
/usr/bin/busybox --install -s /usr/bin 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts -o nosuid,noexec,ptmxmode=0666 devpts /dev/pts
mount -t tmpfs -o nosuid,nodev tmpfs /dev/shm
mount -t tmpfs -o nosuid,nodev,mode=0755 tmpfs /run
mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs /tmp
ln -sf /proc/self/fd /dev/fd

exec </dev/null >/dev/console 2>&1
say() { echo "lockstep: $*"; }

while read -r module; do
    insmod "$module" || say "$module could not be loaded"
done </usr/lib/lockstep/modules

address= gateway= name=lockstep shell= control=
for word in $(cat /proc/cmdline); do
    case $word in
    lockstep.ip=*) address=${word#*=} ;;
    lockstep.gateway=*) gateway=${word#*=} ;;
    lockstep.hostname=*) name=${word#*=} ;;
    lockstep.shell) shell=yes ;;
    lockstep.control) control=yes ;;
    esac
done
hostname "$name"
ip link set lo up
interface=
for candidate in /sys/class/net/*; do
    [ -e "$candidate/device" ] && interface=${candidate##*/} && break
done
if [ -n "$interface" ]; then
    [ -n "$address" ] && ip address add "$address" dev "$interface"
    ip link set "$interface" up
    [ -n "$gateway" ] && ip route add default via "$gateway"
else
    say "no network interface was found"
fi

prepare() { :; }
serve() { :; }
ready() { :; }
service= data= disk=/dev/vda
[ -e /usr/lib/lockstep/service ] && . /usr/lib/lockstep/service
up() { cut -d' ' -f1 /proc/uptime; }

# Gives "$data" to the disk: a blank one gets a file system, any other must have one, for what is on it
# is somebody's. Nothing is left for the kernel to initialize later: an idle guest stays idle.
keep() {
    if [ "$(head -c 65536 "$disk" | tr -d '\0' | wc -c)" = 0 ]; then
        say "$disk is blank: making a file system"
        mkfs.ext4 -q -b 4096 -i 65536 -m 0 -J size=16 -L lockstep \
            -E lazy_itable_init=0,lazy_journal_init=0,nodiscard "$disk" || return 1
    else
        # 1: something was corrected, and all is well.
        e2fsck -p "$disk" || [ $? = 1 ] || return 1
    fi
    owner=$(stat -c %u:%g "$data") mode=$(stat -c %a "$data")
    mount -t ext4 -o noatime,errors=remount-ro "$disk" "$data" &&
        chown "$owner" "$data" && chmod "$mode" "$data"
}

if [ -n "$shell" ] || [ -z "$service" ]; then
    # A shell that ends is a shell that was not wanted: it starts again.
    while :; do setsid cttyhack sh </dev/console; done &
fi
if [ -z "$service" ]; then
    echo "LOCKSTEP READY nothing $(up)"
    while :; do wait; sleep 3600; done
fi

if [ -n "$data" ] && [ -b "$disk" ] && ! keep; then
    say "$disk can hold no data of $service, which is not started"
    while :; do wait; sleep 3600; done
fi
[ -n "$control" ] && nc -ll -p 9 -e /usr/lib/lockstep/control &
prepare || say "$service could not be prepared (status $?)"
while :; do
    # Whoever wants it to rest: see control.sh.
    while [ -e /run/lockstep.rest ]; do sleep 1; done
    serve &
    server=$!
    echo "$server" >/run/lockstep.server
    tries=0
    until ready >/dev/null 2>&1; do
        tries=$((tries + 1))
        if ! kill -0 "$server" 2>/dev/null; then break; fi
        if [ "$tries" = 600 ]; then say "$service still does not answer"; fi
        sleep 0.1
    done
    if kill -0 "$server" 2>/dev/null; then
        echo "LOCKSTEP READY $service $(up)"
    fi
    wait "$server"
    say "$service ended with status $?; it is started again"
    sleep 1
done
