#!/bin/bash
# PID 1 of a pod: mounts the pod's own files, then becomes the container's command.
# enter.sh FOLDER DISK_MIB COMMAND...   DISK_MIB 0 leaves the home on the folder's own disk.
set -euo pipefail
folder=$1
disk=$2
shift 2
mount --bind "$folder/etc/ssh" /etc/ssh
mount --bind "$folder/etc/passwd" /etc/passwd
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/sshd
if [ "$disk" != 0 ]; then
  mount -t tmpfs -o "size=${disk}m,mode=700" tmpfs "$folder/root"
fi
cd "$folder/root"
# As in the official images, a non-interactive shell stops reading here.
[ -e .bashrc ] || echo '[ -z "$PS1" ] && return' > .bashrc
exec "$@"
