#!/bin/bash
# The training benchmark's tables on one GPU, in some minutes. It needs PyTorch with a GPU and little else: the other
# packages are installed into .gpu-packages where they are missing. A table that fails does not stop the others.
#
#     tests/programs/gpu_bench.sh [PYTHON] [CHECKOUT OF BUILD-NANOGPT]
set -u
cd "$(dirname "$0")/../.." || exit
python=${1:-python3} peer=${2:-} failed=0
export PYTHONPATH=.gpu-packages

"$python" -c 'import torch; raise SystemExit(not torch.cuda.is_available())' \
    || { echo "error: the torch of $python sees no GPU: name another Python, make gpu-bench GPU_PYTHON=/path/to/python"; exit 1; }
"$python" -c 'import jsonargparse, safetensors, tiktoken, tqdm, typeshed_client, yaml' 2> /dev/null \
    || grep -E '^(jsonargparse|PyYAML|safetensors|tiktoken|tqdm)' requirements.txt \
    | "$python" -m pip install --quiet --disable-pip-version-check --target .gpu-packages -r /dev/stdin || exit
"$python" -c 'import torch; print(torch.cuda.get_device_name(), "torch", torch.__version__)'

table() {
    echo "== $1"
    shift
    "$python" "$@" --train.device cuda || failed=1
}

compare="-m tests.programs.compare_training" recipe="--config configs/gpt2_124m.yaml"
# shellcheck disable=SC2086  # these are several words each
{
    table "124M, the recipe's step, two seeds${peer:+, compared with $peer}" \
        $compare train.seed=2 $peer $recipe --data.micro_batch_size 32
    table "124M, the recipes' steps: AdamW, Muon, and modern with Muon" \
        $compare optim.optimizer=muon optim.optimizer=muon,model.architecture=modern,model.n_head=6 \
        $recipe --data.micro_batch_size 32
    table "124M, 64 sequences at a time: the heaviest kernels" \
        tests/programs/step_speed.py --trace gpu_trace.json --steps 3 $recipe --data.micro_batch_size 64
    table "One change at a time" \
        $compare train.compile=false train.recompute=true \
        $recipe --data.batch_tokens 131072 --data.micro_batch_size 16 --steps 10
    table "Losses of 50 steps compared with float32's, compiled or not" \
        $compare train.precision=fp32 train.compile=false \
        $recipe --data.batch_tokens 32768 --data.micro_batch_size 16 --steps 47
    table "1558M on one GPU" \
        tests/programs/step_speed.py --config configs/gpt2_1558m.yaml --train.compile false --train.recompute true \
        --data.micro_batch_size 16 --data.batch_tokens 32768
}
exit $failed
