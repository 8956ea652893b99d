"""What does a key-value bottleneck cost behind its encoder, and how much faster does it train than fine-tuning?

all-MiniLM-L6-v2 on 32 texts of 128 tokens, a bottleneck of the paper's size (256 codebooks of 4096 pairs, 14
dimensions, 10 classes). Inference, goal: at most 1.2 times the encoder's. A training step on codes, goal: at least 10
times faster than one of the fine-tuned encoder with a linear head (SGD). No limit is given: a step on codes has neither
the encoder nor the search in it, only the values that the codes choose.
"""

from __future__ import annotations

import torch
from harness import alternate, finish, parser, print_table, ratio
from torch import nn
from torch.nn import functional

from weightsmith.continual import BottleneckClassifier
from weightsmith.embedded import load

TEXTS, TOKENS, CLASSES = 32, 128, 10


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    encoder, _ = load("minilm")
    ids = torch.randint(1000, 20000, (TEXTS, TOKENS))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = torch.randint(CLASSES, (TEXTS,))
    classifier = BottleneckClassifier(encoder, CLASSES, in_features=384)
    made = classifier.bottleneck
    assert made is not None
    features = torch.randn(4096, 384)
    made.init_keys(features, passes=0)
    codes = made.train().encode(features[:TEXTS])
    made.fit_codes(codes, labels)
    made.counts.fill_(1)
    classifier.eval()
    tuned = load("minilm")[0].train().requires_grad_(True)
    head = nn.Linear(384, CLASSES)
    optimizer = torch.optim.SGD([*tuned.parameters(), *head.parameters()], lr=1e-3)

    @torch.no_grad()
    def encode() -> None:
        encoder(**batch)

    @torch.no_grad()
    def classify() -> None:
        classifier(**batch)

    def fine_tune() -> None:
        optimizer.zero_grad()
        hidden = tuned(**batch).last_hidden_state.mean(1)
        functional.cross_entropy(head(hidden), labels).backward()
        optimizer.step()

    arms = {
        "encoder": encode,
        "encoder and bottleneck": classify,
        "fine-tuning step": fine_tune,
        "bottleneck's step on codes": lambda: made.fit_codes(codes, labels),
    }
    timings = alternate(arms, rounds=options.rounds)
    print_table(("what", "ms"), [(name, 1e3 * timing.median) for name, timing in timings.items()])
    inference = ratio(timings["encoder and bottleneck"], timings["encoder"])
    training = ratio(timings["fine-tuning step"], timings["bottleneck's step on codes"])
    print(f"inference: {inference:.2f} times the encoder's; training step: {training:.0f} times faster")
    peer, ours = timings["fine-tuning step"], timings["bottleneck's step on codes"]
    finish(
        "dkvb",
        ratio=training,
        goal=10,
        limit=None,
        ours=1e3 * ours.median,
        peer=1e3 * peer.median,
        unit="ms per training step of 32 texts",
        store=options.store,
        inference=inference,
        inference_goal=1.2,
        times={name: 1e3 * timing.median for name, timing in timings.items()},
    )


if __name__ == "__main__":
    main()
