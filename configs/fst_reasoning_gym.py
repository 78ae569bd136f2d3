"""Fast-slow training of a pretrained model on puzzles of reasoning-gym.

    fastweights train configs/fst_reasoning_gym.py --base DIR \\
        --remote.base-url http://HOST:8000/v1 --remote.model NAME --task.dataset chain_sum \\
        --task.options max_terms=4 --run-dir runs/fst_chain_sum

DIR is a Hugging Face checkpoint, and NAME the model on a server that writes the instructions; RL
only, `--arm rl`, needs no server. Needs the [fst] extra. Data sets that score an answer by running
it as Python are refused.

What to expect: never run with a real model, only with a tiny random one in the tests. It does not
fit yet. XLA plans 678 GiB for an update of Qwen3-0.6B on one device at these values, and about 98
for the first evaluation. The causes are float32, no rematerialisation and one backward pass over
all rows; no field of the config changes them (docs/fast_slow.md, "Memory of the configs").
"""

from fastweights.fastslow.config import FastSlow
from fastweights.fastslow.evolution import Evolution
from fastweights.fastslow.objective import PolicyGradient
from fastweights.fastslow.remote.reflection import RemoteModel
from fastweights.tasks.reasoning_gym import ReasoningGym
from fastweights.train import Optim, Train

config = FastSlow(
    task=ReasoningGym(
        template="<|im_start|>user\n{instructions}\n\n{question}<|im_end|>\n"
        "<|im_start|>assistant\n",
    ),
    base="Qwen3-0.6B",
    rl=PolicyGradient(problems=16, rollouts=8),
    evolution=Evolution(keep=4, every=6, instances=32, minibatch=8, samples=2),
    proposer="remote",
    remote=RemoteModel(base_url="http://localhost:8000/v1", model="reflector"),
    optim=Optim(lr=1e-6, clip=1.0, warmup=10),
    train=Train(steps=300, eval_every=12, checkpoint_every=12, log_every=1),
    evaluation=128,
    verdict_limit=5.0,
)
