from .data.digits import Digits as Digits
from .data.fashion_mnist import FashionMNIST as FashionMNIST
from .data.tensors import Augmentation as Augmentation
from .data.tensors import Split as Split
from .model.classifier import Classifier as Classifier
from .model.residual import ResidualNet as ResidualNet
from .model.vit import VisionTransformer as VisionTransformer
