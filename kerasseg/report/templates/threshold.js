// The red channel of a map is the probability, the green one the reference.
for (const place of document.querySelectorAll('.slider')) {
  const map = new Image();
  map.onload = () => {
    const [width, height] = [map.width, map.height];
    const canvas = Object.assign(document.createElement('canvas'), { width, height });
    const context = canvas.getContext('2d', { willReadFrequently: true });
    context.drawImage(map, 0, 0);
    const source = context.getImageData(0, 0, width, height).data;
    const shown = context.createImageData(width, height);
    const whole = place.closest('figure').querySelector('.slice');
    const label = document.createElement('label');
    const range = Object.assign(document.createElement('input'), { type: 'range', min: 1, max: 255, value: place.dataset.level });
    const said = document.createElement('output');
    said.textContent = (place.dataset.level / 255).toFixed(2);
    label.append('Threshold ', range);
    place.append(label, said);
    place.hidden = false;
    range.addEventListener('input', () => {
      let both = 0, sum = 0;
      for (let i = 0; i < source.length; i += 4) {
        const found = source[i] >= range.value, real = source[i + 1] > 127;
        both += found && real; sum += found + real;
        shown.data.set(found ? [255, 157, 31, 130] : [0, 0, 0, 0], i);
      }
      context.putImageData(shown, 0, 0);
      if (!canvas.isConnected) { whole.append(canvas); whole.classList.add('moved'); }
      said.textContent = `${(range.value / 255).toFixed(2)}: Dice ${(sum ? 2 * both / sum : 1).toFixed(3)}`;
    });
  };
  map.src = place.dataset.map;
}
