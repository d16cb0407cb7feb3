# Runs its arguments beside openCryptoki's soft token with the RSA keys key-BITS of the folder $FOLDER.
# In a mount and an IPC namespace of its own: openCryptoki has one place for all tokens of a machine.
set -eu
mount --make-rprivate /
for folder in /var/lib/opencryptoki /etc/opencryptoki /run /dev/shm; do
  mount -t tmpfs none "$folder"
done
mkdir -p /run/lock/opencryptoki/swtok /var/lib/opencryptoki/swtok/TOK_OBJ
chgrp -R pkcs11 /run/lock/opencryptoki /var/lib/opencryptoki
chmod -R 770 /run/lock/opencryptoki /var/lib/opencryptoki
printf 'version opencryptoki-3.1\nslot 0\n{\nstdll = libpkcs11_sw.so\n}\n' > /etc/opencryptoki/opencryptoki.conf
pkcsslotd
trap 'kill "$(cat /run/pkcsslotd.pid)"' EXIT
until [ -S /run/pkcsslotd.socket ]; do sleep 0.1; done

tool() {
  pkcs11-tool --module /usr/lib/x86_64-linux-gnu/pkcs11/libopencryptoki.so --slot-index 0 "$@" > /dev/null
}
tool --init-token --label claviger-test --so-pin 87654321
tool --login --login-type so --so-pin 87654321 --init-pin --new-pin "$PIN"
for key in "$FOLDER"/key-*.der; do
  name="$(basename "$key" .der)"
  tool --login --pin "$PIN" --type privkey --label "$name" --id "$(printf '%s' "${name#key-}" | cut -c 1-2)" \
    --usage-decrypt --usage-sign --sensitive --write-object "$key"
done
"$@"
