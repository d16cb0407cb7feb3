# Runs its arguments beside a TPM in software behind tpm2-pkcs11, which made the RSA keys key-BITS itself.
set -eu
export TPM2_PKCS11_TCTI="swtpm:host=127.0.0.1,port=$PORT" TPM2_PKCS11_STORE="$FOLDER/store" TPM2_PKCS11_LOG_LEVEL=0
rm -rf "$FOLDER/tpm" "$FOLDER/store"
mkdir -m 700 "$FOLDER/tpm" "$FOLDER/store"
swtpm socket --tpm2 --flags not-need-init,startup-clear --tpmstate "dir=$FOLDER/tpm" --daemon \
  --pid "file=$FOLDER/swtpm.pid" --server "type=tcp,port=$PORT,bindaddr=127.0.0.1" \
  --ctrl "type=tcp,port=$((PORT + 1)),bindaddr=127.0.0.1"
trap 'kill "$(cat "$FOLDER/swtpm.pid")"' EXIT

tool() {
  pkcs11-tool --module /usr/lib/x86_64-linux-gnu/pkcs11/libtpm2_pkcs11.so --slot-index 0 "$@" > /dev/null
}
tool --init-token --label claviger-test --so-pin 87654321
tool --login --login-type so --so-pin 87654321 --init-pin --new-pin "$PIN"
for bits in 2048 3072; do
  tool --login --pin "$PIN" --keypairgen --key-type "rsa:$bits" --label "key-$bits" \
    --id "$(printf '%s' "$bits" | cut -c 1-2)" --usage-decrypt
done
"$@"
