"""Who teaches: the shipped teacher, timm and torchvision models, checkpoints, and exported files as black boxes."""

from edgekd.teachers.checkpoint import save_teacher
from edgekd.teachers.load import load_teacher
from edgekd.teachers.teacher import Adapted, Teacher

__all__ = ["Adapted", "Teacher", "load_teacher", "save_teacher"]
