"""One line a chapter: what you find there. The front page's cards and the README's table show these."""

LINES = {
    "one_formula": "the way in: four techniques as one, and what they do to gradients",
    "batch_norm": "training and inference, running statistics, folding, and what small batches do",
    "layer_norm": "RMSNorm too; transformers, placement and warm-up; recurrent networks",
    "instance_norm": "style transfer on photographs, contrast",
    "group_norm": "small batches, choosing the number of groups, weight standardization",
    "weight_norm": "length and direction, data-dependent initialization",
    "choosing": "rules with reasons and sources, speed and memory of all, text and audio",
    "fused_kernels": "bytes against bandwidth, what a compiler fuses, Triton kernels line by line, registers",
}
