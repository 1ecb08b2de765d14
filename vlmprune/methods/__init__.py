"""Methods: one file and one line each."""

BUILT_IN = (  # module.Class, in the order of `vlmprune methods`
    "none.Unpruned",
    "random.Random",
    "uniform.Uniform",
    "downsample.Downsample",
    "fastv.FastV",
    "fastv_oracle.FastVOracle",
    "sgl.SGL",
    "var.VAR",
    "act.ACT",
    "divprune.DivPrune",
    "cdpruner.CDPruner",
    "scope.Scope",
    "mmtok.MMTok",
    "dart.Dart",
    "knorm.KNorm",
    "visionzip.VisionZip",
    "prumerge.PruMerge",
    "pyramiddrop.PyramidDrop",
    "sparsevlm.SparseVLM",
)
