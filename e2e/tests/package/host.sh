# What an administrator does with the packages of the folder $1 on a host of its own: install, set up with
# SoftHSM, serve, wrap, unwrap, upgrade under load, remove, purge. Run by `sh -eux` in a namespace; $2 is the
# folder of this file.
packages=$1
here=$2
cd /root
dpkg -i "$packages"/one/claviger_*.deb > said
cat said
grep 'not enabled and not started: there is no /etc/claviger/claviger.toml yet. Next: claviger init' said
test "$(stat -c '%U %a' /var/lib/claviger /var/log/claviger | tr '\n' ' ')" = 'claviger 700 claviger 750 '
test -s /usr/share/bash-completion/completions/claviger
man -l /usr/share/man/man1/claviger-init.1.gz > /dev/null

# A token, as docs/installation.md makes one.
install -d -m 0700 -o claviger -g claviger /var/lib/claviger-softhsm
echo 'directories.tokendir = /var/lib/claviger-softhsm' > /etc/claviger/softhsm2.conf
export SOFTHSM2_CONF=/etc/claviger/softhsm2.conf
softhsm2-util --init-token --free --label production --so-pin 12345678 --pin 1234
p11tool --provider /usr/lib/softhsm/libsofthsm2.so --login --set-pin 1234 "pkcs11:token=production" \
    --generate-privkey rsa --bits 2048 --id 01 --label user-keys --mark-decrypt --no-mark-sign --no-mark-wrap
chown -R claviger:claviger /var/lib/claviger-softhsm
printf 1234 | install -m 0640 -g claviger /dev/stdin /etc/claviger/pin

claviger init --yes --module /usr/lib/softhsm/libsofthsm2.so --caller kc --server-name localhost
test "$(stat -c '%U:%G %a' /etc/claviger/tls/server.key /etc/claviger/claviger.toml | tr '\n' ' ')" = 'root:claviger 640 root:root 644 '

serve() {
    setpriv --reuid=claviger --regid=claviger --init-groups env -i PATH="$PATH" \
        /usr/bin/claviger serve --config /etc/claviger/claviger.toml 2>> /root/log &
    daemon=$!
    for try in $(seq 600); do
        if claviger keys list --client /root/claviger-pki/kc.toml > /dev/null 2>&1; then return 0; fi
        sleep 0.2
    done
    cat /root/log
    return 1
}
unwraps() { claviger unwrap user-keys --client /root/claviger-pki/kc.toml wrapped | cmp - key; }
serve
claviger doctor
head -c 32 /dev/urandom > key
claviger wrap user-keys --client /root/claviger-pki/kc.toml key > wrapped
unwraps

# The upgrade keeps configuration and state; without systemd the running program goes on until it is restarted.
sha256sum /etc/claviger/claviger.toml > configuration
dpkg -i "$packages"/two/claviger_*.deb
dpkg-query --show --showformat '${Version}\n' claviger | grep '^0.1.1$'
unwraps
kill "$daemon"
wait "$daemon"

# With a service manager that holds the socket, packages replace the program under load, there and back, and no
# call fails. Each call is a process and a connection of its own, and repeats nothing.
install "$here"/systemctl /usr/bin/systemctl
mkdir -p /run/systemd/system
python3 "$here"/service_manager.py 0.0.0.0 8443 claviger \
    /usr/bin/claviger serve --config /etc/claviger/claviger.toml 2>> /root/log &
manager=$!
until unwraps 2> /dev/null; do kill -0 "$manager"; sleep 0.2; done
load() (
    set +x
    while test -e loading; do
        if unwraps 2>> failures; then echo right >> calls; else echo failed >> failures; fi
    done
)
touch loading failures
load & first=$!
load & second=$!
for version in one two one two; do
    before=$(pgrep -f 'claviger serve --config' -P "$manager")
    dpkg -i "$packages/$version"/claviger_*.deb
    test "$before" != "$(pgrep -f 'claviger serve --config' -P "$manager")"
    sleep 2
done
rm loading
wait "$first" "$second"
echo "$(wc -l < calls) right beside four upgrades, $(wc -l < failures) lines of failures"
cat failures
test "$(wc -l < calls)" -gt 20 && test ! -s failures
sha256sum --check configuration

dpkg --remove claviger
wait "$manager"
test ! -e /usr/bin/claviger
test -e /var/lib/claviger && test -e /etc/claviger/claviger.toml
dpkg --purge claviger > said
grep 'kept /etc/claviger and the audit log' said
test ! -e /var/lib/claviger && test -e /var/log/claviger/audit.jsonl && test ! -e /etc/logrotate.d/claviger
