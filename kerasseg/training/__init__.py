"""Fine-tuning: what is asked (`settings`), what happens (`events`), one step (`engine`), all epochs (`trainer`)."""
