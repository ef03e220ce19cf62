#!/usr/bin/env bash
# Run `afmrl train`, or a script, on all hosts of a Cloud TPU VM pod, from your own machine (in tmux:
# the run ends with the connection).
#
#   export TPU=afmrl ZONE=us-east5-b
#   gcloud compute tpus tpu-vm create "$TPU" --zone="$ZONE" \
#       --accelerator-type=v6e-16 --version=v2-alpha-tpuv6e
#   git archive --prefix=afmrl_jax/ --output=afmrl.tar.gz HEAD
#   gcloud compute tpus tpu-vm scp afmrl.tar.gz "$TPU": --zone="$ZONE" --worker=all
#   gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command='set -e
#       sudo apt-get update; sudo apt-get install -y nfs-common python3.11-venv
#       sudo mkdir -p /runs; sudo mount FILESTORE_ADDRESS:/SHARE /runs; sudo chmod 777 /runs
#       tar xzf afmrl.tar.gz; cd afmrl_jax; python3.11 -m venv .venv
#       .venv/bin/pip install -e ".[tpu]"'
#
#   experiments/cluster/tpu_vm.sh -m afmrl_jax train --out /runs/demo
#
# To save and end, so that the same command goes on later:
#   gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=0 \
#       --command='pkill -TERM -f "^[.]venv/bin/python "'
#
# A run that ends with status 75 although nobody here asked it to (maintenance) is started again when
# the TPU is ready, RESTARTS times (0) at most. A Spot TPU that was taken away must be created anew.
set -euo pipefail

readonly TRY_AGAIN=75
if [[ $# -eq 0 || -z ${TPU:-} || -z ${ZONE:-} ]]; then
    echo "usage: TPU=NAME ZONE=ZONE experiments/cluster/tpu_vm.sh -m afmrl_jax train [OPTIONS], or SCRIPT [ARGUMENTS]" >&2
    exit 2
fi

ready() {
    [[ $(gcloud compute tpus tpu-vm describe "$TPU" --zone="$ZONE" --format='value(state)') == READY ]]
}

# A pod's hosts find each other by the TPU's metadata, if they are told to look.
printf -v command '%q ' "$@"
command="cd ${FOLDER:-afmrl_jax} && AFMRL_CLUSTER=on .venv/bin/python $command"
for ((left = ${RESTARTS:-0}; ; left--)); do
    status=0
    gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$command" ||
        status=$? # That of the first host with another one than 0.
    if ((status != TRY_AGAIN || left <= 0)); then
        exit "$status"
    fi
    echo "saved; going on when $TPU is ready ($((left - 1)) restarts left)" >&2
    until ready; do sleep 30; done
done
