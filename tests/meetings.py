"""Two convolutions that meet, in every way that one line of a forward can say; 8 channels each, made of 3."""

import torch
import torch.nn.functional as F
from torch import nn


class Two(nn.Module):
    """Two convolutions that meet, and a head."""

    def __init__(self, meet):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.LazyConv2d(2, 1)
        self.meet = meet
        self.scale = nn.Parameter(torch.zeros(8, 1, 1))

    def forward(self, x):
        return self.head(self.meet(self, self.a(x), self.b(x)))


MEETINGS = {
    "concatenated relu": lambda net, a, b: torch.cat([F.relu(a), F.relu(-a), F.relu(b)], 1),
    "maximum": lambda net, a, b: torch.maximum(a, b),
    "difference": lambda net, a, b: F.relu(a - b) + F.relu(b - a),
    "relu of a difference": lambda net, a, b: F.relu(a - b),
    "product": lambda net, a, b: a * b,
    "gated": lambda net, a, b: a * torch.sigmoid(b),
    "layer scale of zero": lambda net, a, b: a + net.scale * b,
    "subtracted mean": lambda net, a, b: a + (b - b.mean((2, 3), keepdim=True)),
    "threshold": lambda net, a, b: a + F.relu(b - 0.5),
    "softplus": lambda net, a, b: F.softplus(a) + F.elu(b),
    "maxpool": lambda net, a, b: F.max_pool2d(a, 2) + F.avg_pool2d(b, 2),
    "norm": lambda net, a, b: a + F.normalize(b, dim=1),
    "local response norm": lambda net, a, b: a + F.local_response_norm(b, 3),
    "written-out layer norm": lambda net, a, b: a + (b - b.mean(1, keepdim=True)) / (b.std(1, keepdim=True) + 1e-5),
    "global response norm": lambda net, a, b: (
        a + b * (b.norm(dim=(2, 3), keepdim=True) / b.norm(dim=(2, 3), keepdim=True).mean(1, keepdim=True))
    ),
    "variance": lambda net, a, b: a + b.var((2, 3), keepdim=True),
    "softmax over space": lambda net, a, b: a * torch.softmax(b.flatten(2), -1).view_as(b),
    "maximum over channels": lambda net, a, b: a + b.max(1, keepdim=True)[0],
    "maximum with a constant": lambda net, a, b: torch.max(a, torch.tensor(1.0)) + b.clamp(min=2),
    "rounded": lambda net, a, b: a.round() + torch.sign(b),
    "logarithm": lambda net, a, b: F.relu(torch.log(a)) + b.rsqrt(),
    "chosen": lambda net, a, b: torch.where(b > 0, a, -a),
    "filled": lambda net, a, b: a.masked_fill(b < 0, 1.0),
    "cast": lambda net, a, b: a.float().type_as(b) + b.to(torch.float32).to(b.dtype),
    "zeros of its shape": lambda net, a, b: a + b + torch.zeros_like(a),
    "pooled gate, no sigmoid": lambda net, a, b: a * F.relu(b.mean((2, 3), keepdim=True) - 1),
    "broadcast": lambda net, a, b: (a.mean((2, 3), keepdim=True) + torch.ones_like(b)) + b,
    "in place": lambda net, a, b: a.mul_(torch.sigmoid(b)).add_(1).clamp_(0, 1),
    "glu": lambda net, a, b: F.glu(torch.cat([a, b], 1), 1),
    "interpolated": lambda net, a, b: F.interpolate(F.avg_pool2d(a, 2), size=b.shape[2:]) + b,
    "shuffled": lambda net, a, b: F.channel_shuffle(torch.cat([a, b], 1), 2),
    "cut off from gradients": lambda net, a, b: a + b.detach(),
    "without gradients": lambda net, a, b: a + torch.no_grad()(torch.relu)(b),
    "places of the maximum": lambda net, a, b: a + b.argmax(1, keepdim=True),
    "sorted": lambda net, a, b: a + b.sort(1)[0],
    "median": lambda net, a, b: a - b.median(1, keepdim=True)[0],
    "kth value": lambda net, a, b: a - b.kthvalue(3, 1, keepdim=True)[0],
    "range": lambda net, a, b: (a - torch.aminmax(b, dim=1, keepdim=True)[0]).relu(),
    "spectrum": lambda net, a, b: torch.fft.rfft2(a).real + torch.fft.rfft2(b).imag,
    "parts of a spectrum": lambda net, a, b: torch.view_as_real(torch.fft.fft2(a * b)).mean(-1),
    "angle": lambda net, a, b: torch.fft.fft2(a + b).angle(),
    "spectrum of channels": lambda net, a, b: torch.fft.fft(a + b, dim=1).real,
    "differences in space": lambda net, a, b: torch.diff(a, dim=2) + torch.diff(b, dim=2),
    "differences of channels": lambda net, a, b: torch.diff(torch.cat([a, b], 1), dim=1),
    "statistics": lambda net, a, b: (
        a * torch.std_mean(b, (2, 3), keepdim=True)[0] + torch.var_mean(b, 1, keepdim=True)[1]
    ),
    "running sums": lambda net, a, b: torch.logcumsumexp(a, 1) + torch.cumsum(b, 1),
    "a norm": lambda net, a, b: a / torch.linalg.vector_norm(b, dim=1, keepdim=True),
    "cosine": lambda net, a, b: a * F.cosine_similarity(a, b, dim=1)[:, None],
    "pooled channels": lambda net, a, b: a + F.avg_pool3d(b[:, None], (5, 1, 1), 1, (2, 0, 0))[:, 0],
    "resized channels": lambda net, a, b: a + F.interpolate(b[:, None], size=a.shape[1:], mode="trilinear")[:, 0],
    "written into": lambda net, a, b: torch.zeros_like(a).copy_(a).index_add_(1, torch.arange(8), b),
    "pixel shuffled": lambda net, a, b: torch.cat([F.pixel_shuffle(a, 2), F.pixel_shuffle(b, 2)], 1),
    "subtracted at places": lambda net, a, b: a.index_add(1, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]), b, alpha=-1),
    "added up at places": lambda net, a, b: (
        a.transpose(0, 1)
        .index_put((torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]),), b.transpose(0, 1), accumulate=True)
        .transpose(0, 1)
    ),
    "beside ones": lambda net, a, b: F.pad(a, (0, 0, 0, 0, 1, 1), value=1.0) + torch.cat([b, b[:, :2]], 1),
    "filled channels": lambda net, a, b: (
        torch.cat([a, a], 1).index_fill(1, torch.tensor([8, 13]), 2.0) + torch.cat([b, b], 1)
    ),
    "rolled spectrum": lambda net, a, b: torch.fft.fftshift(torch.fft.fft2(a), (2, 3)).abs() + b,
}
