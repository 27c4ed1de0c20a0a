#!/usr/bin/env bash
# Takes down what up.sh brought up: cancels the jobs, stops the daemons of FOLDER's pid files, removes FOLDER. Needs root.
#
#     benchmarks/slurm/down.sh [FOLDER]              # FOLDER: ${TMPDIR:-/tmp}/dotlib-slurm
set -euo pipefail
say() { echo "down.sh: $*" >&2; }
die() { say "$*"; exit 1; }

folder=$(realpath -m -- "${1:-${TMPDIR:-/tmp}/dotlib-slurm}")
[ -e "$folder" ] || { say "nothing at $folder"; exit; }
[ "$(id -u)" = 0 ] || die "needs root"
[[ -O $folder && -f $folder/.dotlib-slurm ]] || die "$folder is not of up.sh; left as it is"
export SLURM_CONF=$folder/slurm.conf

is() { [ "$(cat "/proc/$1/comm" 2>/dev/null)" = "$2" ]; }  # pid, program: a dead daemon's number may be another's by now
pid_of() { local pid; pid=$(cat "$folder/run/$1.pid" 2>/dev/null) && is "$pid" "$1" && echo "$pid"; }
jobs_left() { timeout 10 squeue -h -o %i 2>/dev/null | grep -q .; }

if pid_of slurmctld >/dev/null && jobs_left; then
  timeout 10 squeue -h -o %A | sort -u | xargs -r scancel || true
  end=$((SECONDS + 45))  # KillWait is 30 s
  while jobs_left && [ "$SECONDS" -lt "$end" ]; do sleep 0.5; done
fi
for name in slurmd slurmctld slurmdbd mariadbd munged; do
  pid=$(pid_of "$name") || continue
  kill "$pid"
  end=$((SECONDS + 30))
  while is "$pid" "$name"; do  # not the pid file, which goes first
    [ "$SECONDS" -lt "$end" ] || die "$name ($pid) does not end; see $folder/log/$name.log"
    sleep 0.2
  done
done
rm -rf -- "$folder"
say "down, $folder removed"
