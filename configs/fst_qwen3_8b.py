"""Fast-slow training of Qwen3-8B on word problems: the paper's sizes, planned, only shape-checked.

    fastweights train configs/fst_qwen3_8b.py --base DIR --task.train train.jsonl \\
        --task.test test.jsonl --remote.base-url http://HOST:8000/v1 --remote.model NAME \\
        --run-dir runs/fst_qwen3_8b

DIR is the published checkpoint, and NAME the model on a server that writes the instructions; the
files are JSON Lines in the layout of GSM8K.

What to expect: never run, and it does not fit yet. Float32 weights, gradients and Adam's moments of
8.2 billion parameters are 131 GB, and the base model, which divergence is measured from, 33 GB;
eight devices of one host share them. Activations are the problem: XLA plans 6,740 GiB a device for
an update and 105 for the rollouts. The causes are float32, no rematerialisation and one backward
pass over all rows; no field of the config changes them (docs/fast_slow.md, "Memory of the
configs"). A smaller model of the same family goes through the same code: give its directory as
--base, with fewer --rl.problems, a smaller --task.answer-length, and --mesh.fsdp 1 for one device.

From the paper (arXiv 2605.12484) and its blog: T = 6, G = 8, K of 4 or 8, 64 problems an update for
mathematics, some 1,250 updates, CISPO, advantages over a problem's rollouts under all prompts, a
frozen reflection model of another maker. Learning rate, lengths and the budget of an evolution are
not told; those here are ours.
"""

from fastweights.fastslow.config import FastSlow
from fastweights.fastslow.evolution import Evolution
from fastweights.fastslow.objective import PolicyGradient
from fastweights.fastslow.remote.reflection import RemoteModel
from fastweights.tasks.maths import Maths
from fastweights.train import Mesh, Optim, Train

config = FastSlow(
    task=Maths(
        train="train.jsonl",
        test="test.jsonl",
        answer_length=2048,
        template="<|im_start|>user\n{instructions}\n\n{question}<|im_end|>\n"
        "<|im_start|>assistant\n",
    ),
    base="Qwen3-8B",
    rl=PolicyGradient(problems=64, rollouts=8),
    evolution=Evolution(keep=4, every=6, instances=64, minibatch=8, samples=2),
    proposer="remote",
    remote=RemoteModel(base_url="http://localhost:8000/v1", model="reflector"),
    optim=Optim(lr=1e-6, clip=1.0, warmup=10),
    mesh=Mesh(fsdp=8),
    train=Train(steps=1250, eval_every=24, checkpoint_every=24, log_every=1),
    evaluation=256,
)
