#!/usr/bin/env bash
# What this project measures on a GPU, in one call and in order of worth: the CUDA tests, the forward model, training,
# what tracking and checkpoints take, the precisions, notebook 4.7 at full size. A part that fails or outruns its
# minutes leaves its log; the others go on. With names of parts, only these: where no call may last so long.
#
#     bash benchmarks/gpu.sh FOLDER [PYTHON [PART ...]]
#
# FOLDER/*.jsonl are for benchmarks/results/, FOLDER/*.log say the rest.
set -u
folder=$(mkdir -p "${1:?a folder for the results}" && cd "$1" && pwd) python=${2:-python3} only=" ${*:3} "
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
export WANDB_MODE=${WANDB_MODE:-offline}
"$python" -c 'import sys, torch; torch.cuda.is_available() or sys.exit("gpu.sh: no CUDA device"); print(torch.cuda.get_device_name())' || exit

failed=0
part() {  # name, minutes, command
  [ "$only" = "  " ] || [ "${only#* "$1" }" != "$only" ] || return
  local start=$SECONDS
  rm -f "$folder/$1".*
  timeout "$2m" "${@:3}" >"$folder/$1.out" 2>"$folder/$1.log"
  local code=$?
  [ "$code" = 0 ] || failed=1
  echo "$1: exit code $code after $((SECONDS - start)) s"
}
part tests 8 "$python" -m pytest -q -m gpu tests/test_gpu.py
part forward 4 "$python" -m dotlib bench forward --profile full --json
part lift 3 "$python" -m dotlib bench lift --profile full --json
part training 6 "$python" -m dotlib bench training --profile full --json
part overhead 8 "$python" -m dotlib bench overhead --profile full --json
part sharing 4 "$python" -m dotlib bench sharing --profile full --json
part store 2 "$python" -m dotlib bench store --profile smoke --json
part precision 8 "$python" benchmarks/precision.py --grid 32 --phantoms 384 --epochs 32 --batch 16 --json "$folder/precision.jsonl"
part efficiency 10 "$python" -m dotlib workbook --profile full --notebook notebooks/4.7-training-efficiency.ipynb
for name in forward lift training overhead sharing store; do
  [ ! -f "$folder/$name.out" ] || mv "$folder/$name.out" "$folder/$name.jsonl"
done
exit "$failed"
