#!/bin/bash
# Does what the official images' start script does, with ed25519 only and the pod's own folder instead of /etc.
set -e
folder=$(dirname "${BASH_SOURCE[0]}")
# Faults of this pod, as shell variables that are not exported: OTHER_HOST_KEY, OTHER_CLIENT_KEY, PRINT_OTHER, SSH_DELAY.
. "$folder/image.conf"

setup_ssh() {
  if [[ -n ${PUBLIC_KEY:-} ]]; then
    echo "Setting up SSH..."
    mkdir -p ~/.ssh
    if [[ -n $OTHER_CLIENT_KEY ]]; then
      echo "$OTHER_CLIENT_KEY" >> ~/.ssh/authorized_keys
    else
      echo "$PUBLIC_KEY" >> ~/.ssh/authorized_keys
    fi
    chmod 700 -R ~/.ssh
    if [[ ! -f /etc/ssh/ssh_host_ed25519_key ]]; then
      ssh-keygen -t ed25519 -f /etc/ssh/ssh_host_ed25519_key -q -N ''
      echo "ED25519 key fingerprint:"
      ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub
    fi
    shown=/etc/ssh/ssh_host_ed25519_key.pub
    if [[ -n $OTHER_HOST_KEY ]]; then
      ssh-keygen -t ed25519 -f "$folder/etc/other_key" -q -N ''
      if [[ -n $PRINT_OTHER ]]; then shown="$folder/etc/other_key.pub"; fi
    fi
    if [[ $SSH_DELAY != 0 ]]; then sleep "$SSH_DELAY"; fi
    /usr/sbin/sshd -D -e &
    echo "SSH host keys:"
    echo "Key: $shown"
    ssh-keygen -lf "$shown"
  fi
}

export_env_vars() {
  echo "Exporting environment variables..."
  printenv | grep -E '^[A-Z_][A-Z0-9_]*=' | grep -v '^PUBLIC_KEY' |
    awk -F = '{ val = $0; sub(/^[^=]*=/, "", val); print "export " $1 "=\"" val "\"" }' > "$folder/etc/rp_environment"
  echo "source $folder/etc/rp_environment" >> ~/.bashrc
}

echo "Pod Started"
setup_ssh
export_env_vars
echo "Start script(s) finished, Pod is ready to use."
sleep infinity
