"""Small networks of torchvision and timm that were made for phones and boards, by name."""

from __future__ import annotations

from edgekd.students.spaces.bodies import Task
from edgekd.students.spec import ZooSpec

NAME = "zoo"
NETWORKS = (
    "torchvision:mobilenet_v2",
    "torchvision:mobilenet_v3_small",
    "torchvision:mobilenet_v3_large",
    "torchvision:shufflenet_v2_x0_5",
    "torchvision:shufflenet_v2_x1_0",
    "torchvision:squeezenet1_1",
    "torchvision:mnasnet0_5",
    "torchvision:mnasnet0_75",
    "torchvision:regnet_y_400mf",
    "torchvision:resnet18",
    "timm:lcnet_035",
    "timm:lcnet_050",
    "timm:lcnet_100",
    "timm:mobilenetv3_small_050",
    "timm:mobilenetv3_small_075",
    "timm:mobilenetv4_conv_small_035",
    "timm:mobilenetv4_conv_small_050",
    "timm:mobilenetv4_conv_small",
    "timm:tf_efficientnet_lite0",
    "timm:ghostnet_050",
    "timm:tinynet_e",
    "timm:resnet10t",
)


def specs(task: Task, *, weights: dict[str, str] | None = None) -> list[ZooSpec]:
    """Every network at every image size. weights: checkpoints by network name."""
    found = weights or {}
    return [
        ZooSpec(
            name=name,
            image_size=image_size,
            in_channels=task.in_channels,
            num_classes=task.num_classes,
            weights=found.get(name),
        )
        for image_size in task.image_sizes
        for name in NETWORKS
    ]
