"""The quality of generated text: `ltg-mdlm eval generation`."""
