# Runs in the machine of boot.py. Until the package is installed there is no Python here, which is the point.
cd /run/given
export DEBIAN_FRONTEND=noninteractive
say() { echo "@@ $*"; }
say "machine: $(. /etc/os-release; echo "$PRETTY_NAME"), kernel $(uname -r), systemd $(systemctl --version | sed -n '1s/[^ ]* \([^ ]*\).*/\1/p'), $(systemd-detect-virt), cgroup $(stat -fc %T /sys/fs/cgroup), controllers: $(cat /sys/fs/cgroup/cgroup.controllers 2>/dev/null)"
if command -v python3 >/dev/null; then say "FAIL clean machine: it has Python already"; fi
if apt-get install --yes ./trimtab-agent_*.deb >apt.log 2>&1; then
	say "ok   apt-get install ./trimtab-agent_*.deb, without network"
	python3 guest.py 2>&1 | sed 's/^/@@ /'
else
	say "FAIL apt-get install ./trimtab-agent_*.deb"
	tail -n 20 apt.log | sed 's/^/@@ /'
fi
say "done"
