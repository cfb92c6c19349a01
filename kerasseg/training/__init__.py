"""Fine-tuning: training data, compiled steps (`engine`), the training loop (`trainer`), and what it writes and reports."""
