"""A model for other people: its card, the Hugging Face Hub, ONNX.

    model_card  README.md beside the weights
    hub         upload to the Hub
    onnx        export to ONNX, compared with the model

Imports model.
"""
