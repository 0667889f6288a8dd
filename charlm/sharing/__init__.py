"""A model for other people: its card, the Hugging Face Hub, ONNX.

model_card  README.md next to the weights, from the template model_card.md
hub         upload to the Hugging Face Hub
onnx        export to ONNX, compared with the model
"""
