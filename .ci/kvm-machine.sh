# What .ci/kvm-in-qemu and .ci/kvm-in-bochs have in common: a Debian kernel that loads KVM's modules on the
# processor that it is given and runs one program. Sourced, after `name` and `cache` are set.

fail() {
    echo "$name: $*" >&2
    exit 125
}

apt_get() {
    if [ "$(id -u)" = 0 ] && ! apt-cache show busybox-static >/dev/null 2>&1; then
        apt-get -qq update >&2
    fi
    apt-get -qq -o APT::Sandbox::User=root "$@" >&2
}

# require COMMAND PACKAGE...: installs the packages if the command is missing.
require() {
    command -v "$1" >/dev/null && return
    local command=$1
    shift
    [ "$(id -u)" = 0 ] || fail "$command is missing: apt-get install $*"
    echo "$name: installing $*" >&2
    apt_get install -y --no-install-recommends "$@" || fail "could not install $*"
}

# The kernel and busybox, unpacked but not installed. Made beside the cache and moved into it whole, so
# that what is there is complete.
fetch() {
    command -v apt-get >/dev/null || fail "needs Debian's apt-get to fetch a kernel and busybox"
    echo "$name: fetching a Debian kernel and busybox" >&2
    local new
    new=$(mktemp -d "$cache/new.XXXXXX")
    (
        cd "$new"
        # The package linux-image-cloud-amd64 only depends on the current kernel's.
        apt_get download busybox-static linux-image-cloud-amd64
        kernel=$(dpkg-deb -f linux-image-cloud-amd64_*.deb Depends)
        rm linux-image-cloud-amd64_*.deb
        apt_get download "${kernel%% *}"
        for package in *.deb; do
            dpkg-deb -x "$package" .
            rm "$package"
        done
        mv boot/vmlinuz-* vmlinuz
        mkdir -p root/bin root/modules
        mv bin/busybox root/bin/
        modules=$(echo lib/modules/*/kernel)
        for module in virt/lib/irqbypass arch/x86/kvm/kvm arch/x86/kvm/kvm-amd arch/x86/kvm/kvm-intel \
            drivers/net/tun drivers/net/veth; do
            mv "$modules/$module.ko" root/modules/
        done
        rm -rf bin boot etc lib usr
    ) || fail "could not fetch the kernel and busybox"
    rm -rf "$cache/machine"
    mv "$new" "$cache/machine"
}

# make_initrd SILICON PROGRAM [ARGUMENT...]: $work/initrd, and $cache/machine/vmlinuz to boot it with. Serial
# ports: 0 console, 1 and 2 the program's output, 3 how it ended.
make_initrd() {
    local silicon=$1 program=$2 root=$work/root
    shift 2
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    flock 9
    [ -e "$cache/machine/root/modules/kvm-intel.ko" ] || fetch
    exec 9>&-

    cp -r "$cache/machine/root" "$root"
    local busybox=$root/bin/busybox
    mkdir -p "$root"/{dev,proc,sys,tmp,work}
    cp -- "$program" "$root/program"
    # What debuggers want of it is most of its size.
    strip "$root/program" 2>/dev/null || true
    # Its libraries and what else it reads, at the same paths.
    local path
    for path in $(ldd "$program" 2>/dev/null | grep -o '/[^ ]*' || true) ${KVM_FILES:-}; do
        [[ $path = /* && -e $path ]] || fail "KVM_FILES: $path: not the absolute path of a file"
        mkdir -p "$root$(dirname "$path")"
        cp -rL -- "$path" "$root$path"
    done

    {
        local variable
        for variable in $(compgen -e | grep -E '^(LOCKSTEP|RUST|PROPTEST)_' || true); do
            # Where to note what could not run is a directory of the host's.
            [ "$variable" = LOCKSTEP_NOT_RUN ] || printf 'export %s=%q\n' "$variable" "${!variable}"
        done
        printf 'export LOCKSTEP_SILICON=%q\n' "$silicon"
        printf 'set --'
        [ $# = 0 ] || printf ' %q' "$@"
        printf '\n'
    } >"$root/arguments"

    cat >"$root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/work LD_LIBRARY_PATH=
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/shm /dev/net /dev/pts
mount -t tmpfs tmpfs /dev/shm
for port in 1 2 3; do stty -F /dev/ttyS$port 115200 raw -echo; done
if grep -qw svm /proc/cpuinfo; then kvm=kvm-amd; else kvm=kvm-intel; fi
for module in irqbypass kvm $kvm tun veth; do insmod /modules/$module.ko; done
ip link set lo up
cd /work
. /arguments
/program "$@" </dev/null >/dev/ttyS1 2>/dev/ttyS2
echo "status $?" >/dev/ttyS3
for port in 1 2 3; do stty -F /dev/ttyS$port sane; done
poweroff -f
INIT
    chmod +x "$root/init"
    (cd "$root" && find . | "$busybox" cpio -o -H newc 2>/dev/null) >"$work/initrd"
    rm -rf "$root"
}

# finish STATUS SECONDS: exits as the program did, which ran in a machine that ended with STATUS.
finish() {
    if grep -q '^status [0-9]' "$work/status" 2>/dev/null; then
        exit "$(tr -dc 0-9 <"$work/status")"
    fi
    echo "$name: the machine's console:" >&2
    tail -n 40 "$work/console" >&2 || true
    [ "$1" != 124 ] || { echo "$name: out of time ($2 s)" >&2; exit 124; }
    fail "the machine ended with status $1 before the program did"
}
