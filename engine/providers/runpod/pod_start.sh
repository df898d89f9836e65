# Runs as the pod's first process, before the image's own start script: installs the host key, arms the dead-man's
# switch, removes the secrets from the environment and becomes the image's start script. sshd must not start before the
# switch is armed.
set -u
umask 077
export HOME="${HOME:-/root}"
base="$HOME/.glasshouse"
mkdir -p "$base" /etc/ssh
fail() { echo "The pod does not start: $1."; exit 1; }

printf '%s' "${GLASSHOUSE_HOST_KEY:-}" | base64 -d > /etc/ssh/ssh_host_ed25519_key || fail "its host key cannot be installed"
[ -s /etc/ssh/ssh_host_ed25519_key ] || fail "the order has no host key"
chmod 600 /etc/ssh/ssh_host_ed25519_key
printf '%s' '@HOST_PUBLIC@' | base64 -d > /etc/ssh/ssh_host_ed25519_key.pub || fail "its host key cannot be installed"
chmod 644 /etc/ssh/ssh_host_ed25519_key.pub

start="${GLASSHOUSE_IMAGE_START:-/start.sh}"
key="${RUNPOD_API_KEY:-}"
unset GLASSHOUSE_HOST_KEY GLASSHOUSE_START GLASSHOUSE_IMAGE_START RUNPOD_API_KEY
rm -f "$HOME/.glasshouse-start"

touch "$base/heartbeat"
cat > "$base/deadman.py" <<'END_OF_DEADMAN' || fail "the dead-man's switch cannot be written"
@DEADMAN@
END_OF_DEADMAN
python3 -I "$base/deadman.py" @SECONDS@ @SILENCE@ "$base/heartbeat" "$base/deadline" <<< "$key" \
  || fail "the dead-man's switch cannot be armed"
unset key
umask 022
if [ -x "$start" ]; then exec "$start"; else exec bash "$start"; fi
