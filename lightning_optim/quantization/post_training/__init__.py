"""Post-training methods: a trained network is made ready for few bits, without training."""
