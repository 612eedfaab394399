{{/*
What the pods of both tiers have in common. Every template is called with (dict "root" $ "tier" "frontend").
*/}}

{{/* Head of a pod: who it is, where it may run, and the restricted Pod Security Standard. */}}
{{- define "forebay.pod.head" -}}
{{- $tier := index .root.Values .tier -}}
serviceAccountName: {{ include "forebay.serviceAccountName" . | quote }}
automountServiceAccountToken: false
# A Service named "forebay" would otherwise set FOREBAY_PORT, which is a setting of ours, to an address.
enableServiceLinks: false
terminationGracePeriodSeconds: {{ include "forebay.gracePeriodSeconds" . }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ quote . }}
  {{- end }}
{{- end }}
{{- with $tier.priorityClassName }}
priorityClassName: {{ quote . }}
{{- end }}
{{- with $tier.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $tier.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $tier.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $tier.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range . }}
  - {{- toYaml . | nindent 4 }}
    {{- if not .labelSelector }}
    labelSelector:
      matchLabels:
        {{- include "forebay.selectorLabels" $ | nindent 8 }}
    {{- end }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Time from a pod's end being decided to SIGKILL: the preStop delay, the drain, and a margin. */}}
{{- define "forebay.gracePeriodSeconds" -}}
{{- $drain := (index .root.Values .tier).drain -}}
{{- add $drain.delaySeconds $drain.graceSeconds $drain.marginSeconds -}}
{{- end -}}

{{- define "forebay.container.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop:
    - ALL
{{- end -}}

{{/* Keeps a pod that has left its Service serving for a while: proxies hear of it later than the pod does. */}}
{{- define "forebay.container.lifecycle" -}}
{{- $drain := (index .root.Values .tier).drain -}}
{{- if gt (int $drain.delaySeconds) 0 -}}
lifecycle:
  preStop:
    exec:
      command: ["sleep", "{{ int $drain.delaySeconds }}"]
{{- end -}}
{{- end -}}

{{- define "forebay.container.env" -}}
{{- $model := .root.Values.model -}}
- name: HOME
  value: /tmp
- name: HF_HOME
  value: /cache
{{- if $model.existingClaim }}
- name: HF_HUB_OFFLINE
  value: "1"
{{- else if $model.hubToken.existingSecret }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ quote $model.hubToken.existingSecret }}
      key: {{ quote $model.hubToken.key }}
{{- end }}
{{- end -}}

{{- define "forebay.container.volumeMounts" -}}
- name: tmp
  mountPath: /tmp
- name: cache
  mountPath: /cache
{{- if .root.Values.model.existingClaim }}
- name: model
  mountPath: /model
  readOnly: true
{{- end }}
{{- end -}}

{{- define "forebay.pod.volumes" -}}
{{- $cache := (index .root.Values .tier).cache -}}
- name: tmp
  emptyDir: {}
- name: cache
  {{- if $cache.existingClaim }}
  persistentVolumeClaim:
    claimName: {{ quote $cache.existingClaim }}
  {{- else if $cache.sizeLimit }}
  emptyDir:
    sizeLimit: {{ quote $cache.sizeLimit }}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- with .root.Values.model.existingClaim }}
- name: model
  persistentVolumeClaim:
    claimName: {{ quote . }}
    readOnly: true
{{- end }}
{{- end -}}

{{/* Checked every 5 s until it answers, for as long as the tier's startupSeconds. */}}
{{- define "forebay.startupThreshold" -}}
{{- div (add (index .root.Values .tier).startupSeconds 4) 5 -}}
{{- end -}}
