"""How fast does a learngene become a model? A vision transformer of width 768, five stages unrolled to 12 blocks.

The peer builds a new model from the configuration, draws its weights and then loads the copied ones over them, as the
paper's code does. Goal: 5 times faster. The limit reads every weight once and writes it once.
"""

from __future__ import annotations

import torch
from harness import alternate, finish, memory_bandwidth, parser, print_table, ratio
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from weightsmith.core.models import find_stack
from weightsmith.grow import Learngene, share_stages
from weightsmith.grow._expand import assign

STAGES, DEPTH = (3, 3, 4, 3, 3), 12


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    model = ViTForImageClassification(ViTConfig(num_hidden_layers=sum(STAGES), num_labels=1000)).eval()
    gene = Learngene(model, share_stages(model, STAGES))
    positions = gene.plan.positions(assign(DEPTH, len(STAGES)))

    def from_configuration() -> nn.Module:
        new = ViTForImageClassification(ViTConfig(num_hidden_layers=DEPTH, num_labels=1000))
        state = {name: tensor for name, tensor in model.state_dict().items() if ".layers." not in name}
        blocks = find_stack(model).blocks
        for block, position in enumerate(positions):
            copied = blocks[position].state_dict()
            state |= {f"vit.layers.{block}.{name}": tensor for name, tensor in copied.items()}
        new.load_state_dict(state)
        return new.eval()

    arms = {"ours": lambda: gene.expand(DEPTH), "from the configuration": from_configuration}
    pairs = zip(arms["ours"]().state_dict().items(), from_configuration().state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
    timings = alternate(arms, rounds=options.rounds)
    nbytes = sum(p.numel() * p.element_size() for p in gene.expand(DEPTH).parameters())
    copying = 2 * nbytes / memory_bandwidth()
    rows = [*((name, 1e3 * timing.median) for name, timing in timings.items()), ("read and write", 1e3 * copying)]
    print_table(("arm", "ms"), rows)
    finish(
        "learngene_expand",
        ratio=ratio(timings["from the configuration"], timings["ours"]),
        goal=5.0,
        limit=timings["from the configuration"].median / copying,
        ours=1e3 * timings["ours"].median,
        peer=1e3 * timings["from the configuration"].median,
        unit="ms",
        megabytes=nbytes / 1e6,
        stored_megabytes=4 * gene.parameters / 1e6,
        store=options.store,
    )


if __name__ == "__main__":
    main()
