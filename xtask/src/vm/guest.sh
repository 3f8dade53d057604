#!/bin/sh
# The first process of a virtual machine: loads graylb's programs, says what the verifier made of them, and runs
# the tests. Lines that begin with VM- are for `cargo xtask vm`.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin RUST_BACKTRACE=0 GRAYLB_BINARY=/bin/graylb RUST_TEST_THREADS=2 GRAYLB_TEST_SWITCHES=20
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
for module in llc stp bridge veth sch_ingress cls_bpf; do
    insmod /modules/$module.ko || echo "VM-PROBLEM no module $module"
done
ip link set lo up
ip link add vm0 type veth peer name vm1
ip link set vm0 up
ip link set vm1 up
echo "VM-KERNEL $(uname -r)"

cat > /tmp/graylb.toml <<'END'
[flows]
tcp = 4096
half_open = 4096
udp = 4096
[interfaces.lo]
[interfaces.vm0]
attach = "xdp"
[socket_hook]
enabled = true
[services.demo]
address = "127.0.0.1:8000"
default_pool = "pool"
[pools.pool]
backends = ["127.0.0.1:18081"]
END
chmod 600 /tmp/graylb.toml
graylb run --config /tmp/graylb.toml > /tmp/graylb.log 2>&1 &
agent=$!
for second in 1 2 3 4 5 6 7 8 9 10; do
    sleep 1
    if graylb status > /tmp/status 2>&1; then break; fi
done
if ! graylb status > /tmp/status 2>&1; then
    echo "VM-PROBLEM the agent does not run:"
    cut -c1-3000 /tmp/graylb.log
fi
sed -n '/ by /s/^/VM-ATTACHED /p; /^socket hook/s/^/VM-ATTACHED /p; /PROBLEM/s/^/VM-/p' /tmp/status
for program in /sys/fs/bpf/graylb/abi-*/programs/*; do
    info=$(bpftool --json prog show pinned "$program")
    number() { echo "$info" | sed -n "s/.*\"$1\":\([0-9]*\).*/\1/p"; }
    # The agent has it open, and the kernel says more there (bpf_prog_show_fdinfo, kernel/bpf/syscall.c).
    open=$(grep -l "^prog_id:[[:space:]]*$(number id)\$" /proc/$agent/fdinfo/* | head -1)
    verified=$(sed -n 's/^verified_insns:[[:space:]]*//p' "$open")
    echo "VM-PROGRAM ${program##*/} $(number bytes_xlated) $verified"
done
kill $agent
wait $agent
graylb unload > /dev/null

for test in /tests/*; do
    [ -e "$test" ] || continue
    # Some tests make flows look older than the machine, whose clock begins when it does.
    while [ "$(cut -d. -f1 /proc/uptime)" -lt 130 ]; do sleep 1; done
    began=$(cut -d. -f1 /proc/uptime)
    timeout 600 "$test" > /tmp/out 2>&1
    code=$?
    sed -n 's/^test \(.*\) \.\.\. ok$/VM-OK \1/p; s/^test \(.*\) \.\.\. FAILED$/VM-FAILED \1/p' /tmp/out |
        sed "s|^VM-[A-Z]*|& ${test##*/}|"
    echo "${test##*/} took $(($(cut -d. -f1 /proc/uptime) - began)) s"
    if [ $code != 0 ]; then
        echo "VM-PROBLEM ${test##*/} ended with $code:"
        grep -A4 panicked /tmp/out | cut -c1-600 | head -40
    fi
done
echo VM-DONE
poweroff -f
