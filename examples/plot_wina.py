"""
Skipping weight columns with WINA and TEAL
==========================================

For every token both methods drop the inputs with the smallest scores. TEAL's score is the magnitude of the input; WINA
multiplies it by the norm of the input's weight column. The left picture compares them on a layer whose columns are
orthogonal and differ in norm. The right one shows how many inputs the layers of SmolLM2-135M skip on new text, with
thresholds calibrated to 50 % on other text.
"""

# %%
# A random layer: orthogonal columns, norms between 0 and 2.
import torch

from weightsmith.sparsify._wina.selection import column_norms, dropped, topk_limits

generator = torch.Generator().manual_seed(0)
weight = torch.linalg.qr(torch.randn(256, 256, generator=generator)).Q * 2 * torch.rand(256, generator=generator)
x = torch.randn(200, 256, generator=generator)
shares = torch.linspace(0.05, 0.9, 18).tolist()


def error(score, norms, share):
    """Mean length of the change of the output, relative to the output."""
    change = x.where(dropped(score, topk_limits(score, norms, share)), 0) @ weight.T
    return (change.norm(dim=1).mean() / (x @ weight.T).norm(dim=1).mean()).item()


ones = torch.ones(256)
noise = torch.rand(x.shape, generator=generator)
curves = {
    "random": [error(noise, ones, share) for share in shares],
    "TEAL: |x|": [error(x, ones, share) for share in shares],
    "WINA: |x| × column norm": [error(x, column_norms(weight), share) for share in shares],
}

# %%
# Thresholds for SmolLM2 from one text, and what they skip on another.
from weightsmith.core.data import token_ids, token_windows
from weightsmith.embedded import load, text
from weightsmith.sparsify import plan_report, wina

model, tokenizer = load("smollm2")
windows = token_windows(token_ids(tokenizer, text("calibration")), length=128, count=4, batch_size=4)
wina(model, windows, sparsity=0.5, backend="mask")
with torch.no_grad():
    model(token_ids(tokenizer, text("evaluation"))[:256].unsqueeze(0))
report = plan_report(model)
print(f"planned {report['sparsity']:.1%}, skipped {report['realized']:.1%} of the weights")

# %%
# Draw both.
import matplotlib.pyplot as plt

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for (name, errors), style in zip(curves.items(), ("0.6", "tab:blue", "tab:orange"), strict=True):
    left.plot([100 * share for share in shares], errors, color=style, lw=2, label=name)
left.set(
    xlabel="inputs skipped (%)", ylabel="relative error of the output", ylim=0, title="one random layer, 256 x 256"
)
left.legend(frameon=False)
for kind in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
    rows = [row for row in report["layers"] if row["layer"].endswith(kind)]
    right.plot([100 * row["realized"] for row in rows], lw=1.5, label=kind)
right.axhline(50, color="0.6", lw=1, ls=":")
right.set(xlabel="block", ylabel="inputs skipped (%)", title="SmolLM2-135M, thresholds for 50 %, other text")
right.legend(frameon=False, fontsize=8, ncols=2)
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()
