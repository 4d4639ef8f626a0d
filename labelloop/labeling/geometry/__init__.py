"""Shapes in pixels: conversion, rasterisation, overlap, and the codecs of masks."""
