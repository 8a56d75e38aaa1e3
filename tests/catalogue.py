"""One example of every strategy that Koinon brings, with a model where it needs certain names in it."""

import numpy as np

import koinon

FEDAVG = koinon.FedAvg()
HEAD = {"head.w": np.full((2, 3), 0.1), "body.w": np.full((3, 3), 0.2, np.float32)}

LORA = {"l.lora_a": np.full((2, 3), 0.1), "l.lora_b": np.full((4, 2), 0.1)}

BUILT_IN = {
    koinon.FedAvg: (FEDAVG, None),
    koinon.FedAvgUniform: (koinon.FedAvgUniform(lr=0.5), None),
    koinon.FedAvgM: (koinon.FedAvgM(), None),
    koinon.FedAdagrad: (koinon.FedAdagrad(), None),
    koinon.FedAdam: (koinon.FedAdam(bias_correction=True), None),
    koinon.FedYogi: (koinon.FedYogi(), None),
    koinon.FedExP: (koinon.FedExP(), None),
    koinon.FedBuff: (koinon.FedBuff(), None),
    koinon.FedAsync: (koinon.FedAsync(), None),
    koinon.Staleness: (koinon.chain(FEDAVG, koinon.Staleness()), None),
    koinon.FedNova: (koinon.FedNova(steps=3.0), None),
    koinon.QFedAvg: (koinon.QFedAvg(), None),
    koinon.Prox: (koinon.FedProx(mu=0.2), None),
    koinon.Scaffold: (koinon.Scaffold(), None),
    koinon.FedDyn: (koinon.FedDyn(alpha=0.5), None),
    koinon.LoraProjection: (koinon.chain(FEDAVG, koinon.LoraProjection()), LORA),
    koinon.Clip: (koinon.chain(FEDAVG, koinon.Clip(0.5)), None),
    koinon.FedBN: (koinon.chain(FEDAVG, koinon.FedBN(keys=("head.*",))), HEAD),
    koinon.FedPer: (koinon.chain(FEDAVG, koinon.FedPer(keys=("head.*",))), HEAD),
    koinon.FedRep: (koinon.chain(FEDAVG, koinon.FedRep(keys=("head.*",), head_epochs=2)), HEAD),
    koinon.Ditto: (koinon.chain(FEDAVG, koinon.Ditto()), None),
    koinon.CoordinateMedian: (koinon.chain(FEDAVG, koinon.CoordinateMedian()), None),
    koinon.TrimmedMean: (koinon.chain(FEDAVG, koinon.TrimmedMean()), None),
    koinon.Krum: (koinon.chain(FEDAVG, koinon.Krum()), None),
    koinon.MultiKrum: (koinon.chain(FEDAVG, koinon.MultiKrum()), None),
    koinon.GeometricMedian: (koinon.chain(FEDAVG, koinon.GeometricMedian()), None),
    koinon.CenteredClipping: (koinon.chain(FEDAVG, koinon.CenteredClipping()), None),
    koinon.NNM: (koinon.chain(FEDAVG, koinon.CoordinateMedian(), koinon.NNM()), None),
    koinon.NormBound: (koinon.chain(FEDAVG, koinon.NormBound()), None),
}
