"""The 24 real clips as packet and frame dumps show them; written down by hand, never computed by the code under test.

Times are pts times time base of the first and last frame; AVI with B-frames counts frames at its rate. Sizes are
upright. Rotation is the display matrix, in degrees counterclockwise.
"""

from typing import NamedTuple


class Truth(NamedTuple):
    frames: int
    keyframes: int
    first_s: float
    last_s: float
    end_s: float
    codec: str
    width: int
    height: int
    rotation: int = 0
    status: str = "ok"


CLIPS = {
    "R6llTwEh07w.mp4": Truth(303, 2, 0.0, 154624 / 15360, 10.1, "h264", 340, 256),
    "SOX5yA1l24A.mp4": Truth(332, 4, 0.0, 331331 / 30000, 332332 / 30000, "h264", 340, 256),
    "TrumanShow_wave_f_nm_np1_fr_med_26.avi": Truth(48, 2, 0.0, 47 / 30, 1.6, "mpeg4", 432, 240),
    "animated.gif": Truth(4, 1, 0.0, 0.3, 0.4, "gif", 64, 48),
    "av1_video.mkv": Truth(125, 1, 0.0, 4.96, 5.0, "av1", 640, 360),
    "bikes.mp4": Truth(250, 6, 0.0, 9.96, 10.0, "h264", 640, 272),
    "corrupted.mp4": Truth(28, 1, 0.0, 2.7, 2.8, "h264", 1280, 720, status="partial"),
    "delayed_start.mp4": Truth(24, 23, 1.075, 1.995, 2.035, "mpeg4", 480, 320),
    "demo.mp4": Truth(280, 4, 0.0, 142848 / 14336, 10.0, "h264", 340, 256),
    "discard_first_keyframe.mp4": Truth(25, 2, 0.0, 0.96, 1.0, "h264", 64, 64),
    "flipping_a_pancake.mkv": Truth(310, 3, 0.0, 10.3, 10.333, "h264", 426, 240),
    "h264_10bits.mp4": Truth(30, 1, 0.0, 14848 / 15360, 1.0, "h264", 200, 200),
    "h265_video.mp4": Truth(10, 5, 0.0, 0.9, 1.0, "hevc", 128, 128),
    "hmdb51_Turnk_r_Pippi_Michel_cartwheel_f_cm_np2_le_med_6.avi": Truth(
        83, 1, 0.0, 82 / 30, 83 / 30, "mpeg4", 320, 240
    ),
    "nasa_13013.mp4": Truth(325, 2, 0.0, 12.96, 13.0, "h264", 320, 180),
    "nasa_13013_rotated.mp4": Truth(17, 1, 0.0, 16016 / 30000, 17017 / 30000, "h264", 270, 480, 90),
    "sine_stereo_mp2.mpg": Truth(100, 9, 0.54, 4.5, 4.54, "mpeg1video", 128, 128),
    "test_non_zero_start.mp4": Truth(12, 1, 127995 / 15360, 133627 / 15360, 134139 / 15360, "h264", 200, 112),
    "test_video_structuralize.mp4": Truth(300, 2, 0.0, 299299 / 30000, 10.01, "h264", 426, 240),
    "testsrc2_odd_height_and_width_vp9.mp4": Truth(25, 1, 0.0, 0.96, 1.0, "vp9", 321, 241),
    "testsrc2_vp8.webm": Truth(30, 1, 0.0, 0.967, 1.0, "vp8", 1280, 720),
    "testsrc2_vp9.webm": Truth(30, 1, 0.0, 0.967, 1.0, "vp9", 1280, 720),
    "v_SoccerJuggling_g23_c01.avi": Truth(240, 20, 0.0, 239 * 1001 / 30000, 8.008, "mpeg4", 320, 240),
    "video_90.mov": Truth(3, 1, 0.0, 1280 / 19200, 0.1, "h264", 320, 568, -90),
}
