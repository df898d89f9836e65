"""What a plan of your own trains with where you do not say otherwise, and where each value comes from.

- Learning rate 2e-4, constant, updates of 16 samples, LoRA on all linear layers: QLoRA (Dettmers et al. 2023,
  arXiv:2305.14314, section 4 and appendix B.2) for models of 7 and 13 thousand million weights.
- Rank 16, alpha twice the rank: Biderman et al. 2024 (arXiv:2405.09673, section 3), also with all linear layers.
- Length: the longest sample, as far as model and memory allow, so that no answer is cut.
- Gradient clip 1.0, no weight decay: the defaults of Hugging Face's Trainer.
- Settling steps 5, a checkpoint every 50 updates: ours. The first updates of a process are slower than the rest, and
  are therefore trained but not timed.
"""

from __future__ import annotations

from typing import Final

from engine.plan import Lora, Training

OWN_LORA: Final = Lora(r=16, alpha=32, targets=("all-linear",))
OWN_TRAINING: Final = Training(
    learning_rate=2e-4,
    batch=4,
    grad_accum=4,
    max_length=None,
    settling_steps=5,
    checkpoint_every=50,
)
