"""AddSR (Xie et al., 2024): what makes SeeSR a student of four steps, and what its training minimises.

The student walks STUDENT_TIMES. From its second step on, the image and the tags that lead it are those of its own
prediction mixed with the LR view (`hooks.RefineCondition` for the image, `RefineTags` for the tags). Its teacher is led
by the HR image. L = gamma_s d(student, teacher) + 0.02 L_adv; gamma is small where there is much noise, since there a
student that must agree cannot be sharp.
"""

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from priors.denoisers.seesr import IMAGE, TAGS, TagPrompter
from priors.interfaces import StepContext

STUDENT_TIMES = (999.0, 749.0, 499.0, 249.0)
ADVERSARIAL = 0.02
FIRST_GAMMA, GROWTH = 0.5, 2.1


def gamma(s: float) -> float:
    """Weight of the distillation at the student's time s: 0.5 at 999, 2.1 times as much every 250 earlier.

    Notes
    -----
    The release counts positions in a list, in which a time it does not hold gets the largest weight; here s decides.
    """
    return FIRST_GAMMA * GROWTH ** ((STUDENT_TIMES[0] - s) / (STUDENT_TIMES[0] - STUDENT_TIMES[1]))


def distillation(student: Float[Tensor, "B C h w"], teacher: Float[Tensor, "B C h w"], s: float) -> Float[Tensor, ""]:
    """gamma_s times the mean squared difference of the clean estimates; nothing flows into the teacher."""
    return gamma(s) * F.mse_loss(student, teacher.detach())


def hinge_discriminator(real: Float[Tensor, "*shape"], fake: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """E max(0, 1 - D(real)) + E max(0, 1 + D(fake)) of logits (Lim and Ye 2017)."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_generator(fake: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """-E D(fake)."""
    return -fake.mean()


def student_loss(
    student: Float[Tensor, "B C h w"], teacher: Float[Tensor, "B C h w"], s: float, fake: Float[Tensor, "*shape"]
) -> Float[Tensor, ""]:
    """gamma_s d + 0.02 L_adv; fake : the discriminator's logits of the student's images."""
    return distillation(student, teacher, s) + ADVERSARIAL * hinge_generator(fake)


@dataclass(frozen=True, eq=False)
class RefineTags:
    """Lets the next step see the tags of the image that it will see; goes after `hooks.RefineCondition`."""

    tagger: TagPrompter

    def __call__(self, x0: Float[Tensor, "B C h w"], context: StepContext) -> Float[Tensor, "B C h w"]:
        if context.last:
            return x0
        cond = context.cond
        tags = self.tagger.embeddings(cond.extra[IMAGE])
        context.cond = replace(cond, extra={**cond.extra, TAGS: tags})
        return x0
