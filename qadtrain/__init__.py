"""Quality-agnostic deepfake detection: training (cross-entropy, HSIC, AWP) and scoring on tuple shard sets."""
