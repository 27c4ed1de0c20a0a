"""Transformers on voxels as tokens: a block for the deep stages of a network, and a full 3-D ViT."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Model
from .blocks import Block, Standard, depth_to_space, space_to_depth

HEAD = 32  # channels of one attention head, at least
EXPANSION = 4  # of the hidden layer


class Positions(nn.Module):
    """A learnt vector for each of n tokens, added to it; uniform with standard deviation 0.02 to begin with."""

    bound = 0.02 * 3**0.5

    def __init__(self, n: int, c: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n, c))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.weight


class Transformer(Block):
    """Self-attention and a hidden layer, each behind a normalisation and beside the identity (Dosovitskiy 2021).

    Tokens (B, N, C) -> the same; 12 C^2 + 13 C parameters. `seen` (B, 1, 1, N): the tokens that are attended to.
    """

    def __init__(self, c: int):
        super().__init__()
        self.heads = next(n for n in range(max(1, c // HEAD), 0, -1) if c % n == 0)
        self.norm1, self.norm2 = nn.LayerNorm(c), nn.LayerNorm(c)
        self.qkv, self.project = nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.expand, self.contract = nn.Linear(c, EXPANSION * c), nn.Linear(EXPANSION * c, c)

    def block(self, tokens: Tensor, seen: Tensor | None = None) -> Tensor:
        heads = self.qkv(self.norm1(tokens)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(*heads, attn_mask=seen).transpose(1, 2).flatten(2)
        tokens = tokens + self.project(found)
        return tokens + self.contract(F.gelu(self.expand(self.norm2(tokens))))


class VoxelTransformer(nn.Module):
    """Transformer blocks whose tokens are the voxels of a stage, (B, C, D, H, W) -> the same: of a hybrid encoder."""

    def __init__(self, c: int, grid: int, blocks: int = 1):
        super().__init__()
        self.positions = Positions(grid**3, c)
        self.blocks = nn.ModuleList(Transformer(c) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.positions(x.flatten(2).transpose(1, 2))
        for block in self.blocks:
            tokens = block(tokens)
        return torch.relu(tokens.transpose(1, 2).unflatten(2, x.shape[2:]))  # as every stage


class Patches(nn.Module):
    """Volumes (B, C, G, G, G) as tokens (B, (G/p)^3, C p^3), and back: no voxel is lost or mixed."""

    def __init__(self, patch: int):
        super().__init__()
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        return space_to_depth(x, self.patch).flatten(2).transpose(1, 2)

    def back(self, tokens: Tensor) -> Tensor:
        side = round(tokens.shape[1] ** (1 / 3))
        return depth_to_space(tokens.transpose(1, 2).unflatten(2, (side,) * 3), self.patch)


class ViT(nn.Module):
    """A full 3-D ViT: patches of 8^3 voxels, seven blocks of 12 `width` channels, and seven back (He 2022).

    A token of its own gathers the code; the decoder's tokens are the code and their place. The output is an occupancy
    gate x softplus level x the tissue's mean, as in `Stage1`.
    """

    patch, blocks = 8, 7

    def __init__(self, grid: int, config: Model):
        super().__init__()
        c, code, n = 12 * config.width, config.code, (grid // self.patch) ** 3
        self.patches = Patches(self.patch)
        self.stem, self.head = nn.Linear(2 * self.patch**3, c), nn.Linear(c, 3 * self.patch**3)
        self.places, self.targets, self.gather = Positions(n, c), Positions(n, c), Positions(1, c)
        self.encoder = nn.ModuleList(Transformer(c) for _ in range(self.blocks))
        self.decoder = nn.ModuleList(Transformer(c) for _ in range(self.blocks))
        self.norm, self.last = nn.LayerNorm(c), nn.LayerNorm(c)
        self.to_code, self.from_code = nn.Linear(c, code), nn.Linear(code, c)

    def tokens(self, z: Tensor) -> Tensor:
        """The gathering token and those of the patches behind the encoder's blocks, (B, 1 + N, C)."""
        tokens = self.places(self.stem(self.patches(z)))
        tokens = torch.cat((self.gather(tokens.new_zeros(len(z), 1, tokens.shape[-1])), tokens), 1)
        for block in self.encoder:
            tokens = block(tokens)
        return tokens

    def encode(self, z: Tensor) -> Tensor:
        return self.to_code(self.norm(self.tokens(z)[:, 0]))

    def features(self, z: Tensor) -> dict[str, Tensor]:
        tokens = self.tokens(z)[:, 1:].transpose(1, 2)
        return {"encoder1": tokens.unflatten(2, (z.shape[-1] // self.patch,) * 3)}

    def maps(self, z: Tensor) -> dict[str, Tensor]:
        return {}

    def decode(self, code: Tensor, standard: Standard) -> Tensor:
        tokens = self.targets(self.from_code(code)[:, None])
        for block in self.decoder:
            tokens = block(tokens)
        return standard.positive(self.patches.back(self.head(self.last(tokens))))
