"""Parts of the RegGAN bundle: networks, losses, translators, engines, metrics, handlers, data and inference."""
