"""What a U-Net is built from."""

from dataclasses import dataclass
from typing import Literal, Optional, Tuple

KINDS = ("unet", "efficient")
ATTENTIONS = ("global", "local", "none", "dilated")


@dataclass(frozen=True)
class ModelConfig:
    """The arguments of `palette_ms.unet.UNet`, and the section `model` of a YAML.

    `attention` is the paper's ablation of self-attention (its table 5). Where attention would stand, at the levels of
    `attention_resolutions` and in the middle, stands:

    - "global": attention of every position to all of them, the paper's choice.
    - "local": attention within non-overlapping blocks. The paper's 4 query blocks are `attention_blocks=2`. It cites
      HaloNet (Vaswani et al. 2021), whose blocks see a rim of their neighbours; here they see nothing but themselves.
    - "none": no attention, and twice the residual blocks. The paper has "2× residual blocks at 32×32, 16×16 and 8×8".
      Our reading: at these levels `num_res_blocks` counts twice, on both ways; the middle keeps its two. At the paper's
      size that is 744 M parameters where its table has 603 M, so the paper doubled less, which it does not specify.
    - "dilated": as "none", and these blocks are dilated. The paper has "increasing dilation rates" that make the
      "receptive fields" grow exponentially. Our reading: 1, 2, 4, … block by block of a level on the way down; the same
      on the way up, whose one block more has 1 again; 1 and 2 in the middle. Both convolutions of a block have its
      rate; resampling blocks have 1. A rate that reaches past a map sees zeros there, as padding does.

    `kind` is the way through the network:

    - "unet": that of Dhariwal & Nichol. Every block of the way down is joined to one of the way up, a level ends with
      its resampling, and two blocks stand in the middle.
    - "efficient": Imagen's Efficient U-Net (Saharia et al. 2022, arXiv 2205.11487, appendix B and figures A.27 to
      A.30), whose parameters are at low resolutions (`res_blocks` such as 0, 2, 4, 8, 8). A level of the way down
      begins with its strided convolution and one of the way up ends with its enlarging one, so that all blocks work at
      the lower resolution. What the way down keeps is divided by √2. A level's last block is followed by attention,
      which is twice as wide as its maps. Nothing stands in the middle. Each block's skip is a 1×1 convolution.
      The paper leaves open how time and text come into a block: here by scale and shift, as in the other network; which
      blocks are joined, and how: here each to one of the way up, concatenated; and how maps are enlarged: here doubled,
      then convolved. Read so, its network for 64→256 has 599 M parameters, and the paper says 600 M. That for 256→1024,
      by the paper's list the same without self-attention, has 582 M, and the paper says 400 M: it must be another than
      its appendix lists, whose 3×3 convolutions take 388 M even if no block is joined.

    At sizes other than the training size, global attention weighs more or fewer positions than it was trained on; a
    number of blocks stays, and the blocks grow and shrink with the map; a size of blocks stays, and there are more or
    fewer of them; without attention every position sees as far as in training. The normalisations take their
    statistics of the whole map in any case.

    Attributes:
        in_channels: channels of source ‖ noisy image.
        out_channels: channels of the prediction.
        base_channels: width of the first level.
        channel_mults: width of each level over `base_channels` (need not be whole); a level halves the size of the
            one before.
        kind: "unet" or "efficient", see above.
        num_res_blocks: residual blocks of a level on the way down; the way up has one more, but in an efficient one.
        res_blocks: in its place, a number for each level; 0 only in an efficient network.
        attention_resolutions: downsampling factors (1, 2, 4, …) at whose levels attention stands, down and up.
            The middle always has it. Without attention: levels with twice the residual blocks.
        num_heads: attention heads; not used where `num_head_channels` is given.
        num_head_channels: channels of a head.
        dropout: in the residual blocks, where the numbers that decide over it are given: in training.
        scale_shift: time conditioning by scale and shift (AdaGN); otherwise it is added.
        resblock_updown: residual blocks resample; otherwise strided convolutions, and doubling with a convolution.
        norm_groups: groups of the normalisations, see `palette_ms.unet.layers.GroupNorm`.
        patch_size: the network works on blocks of patch_size × patch_size pixels (space to depth), which makes
            it that many times squared cheaper; 1 is the paper's. `attention_resolutions` count from the blocks.
        num_classes: of a class-conditional network, whose class embedding is added to the time embedding, or the tasks
            of a network that restores, which takes the task's embedding in its place; None: neither.
        attention: one of `ATTENTIONS`, see above.
        attention_blocks: for local attention: each map is cut into that many blocks along each side, whatever its size;
            they differ by at most one position a side.
        attention_block_size: for local attention, if not `attention_blocks`: positions of a block along each side, at
            every level; the last blocks of a map have what is left.
        text_channels: width of the frozen encoder's tokens that the network is told a text by, see
            `palette_ms.unet.text`; None: it takes no text.
        text_length: tokens that it is given of each text.
        text_resolutions: downsampling factors at whose levels positions look at the text; None: those of
            `attention_resolutions`. The middle always does.
        text_blocks: trainable transformer blocks over the tokens; 0: they are taken as the encoder gave them.
        text_width: of the tokens within these blocks and after; None: as wide as the encoder's.
        source_noise: the network is told how noisy its source is: noise conditioning augmentation.

    Examples:
        >>> ModelConfig(base_channels=32, channel_mults=(1, 2)).in_channels
        6
    """

    in_channels: int = 6
    out_channels: int = 3
    kind: Literal[KINDS] = "unet"
    base_channels: int = 64
    channel_mults: Tuple[float, ...] = (1, 2, 4, 8)
    num_res_blocks: int = 2
    res_blocks: Optional[Tuple[int, ...]] = None
    attention_resolutions: Tuple[int, ...] = (16,)
    num_heads: int = 1
    num_head_channels: Optional[int] = None
    dropout: float = 0.0
    scale_shift: bool = True
    resblock_updown: bool = True
    norm_groups: int = 32
    patch_size: int = 1
    num_classes: Optional[int] = None
    attention: Literal[ATTENTIONS] = "global"
    attention_blocks: Optional[int] = None
    attention_block_size: Optional[int] = None
    text_channels: Optional[int] = None
    text_length: int = 256
    text_resolutions: Optional[Tuple[int, ...]] = None
    text_blocks: int = 0
    text_width: Optional[int] = None
    source_noise: bool = False
